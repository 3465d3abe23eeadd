"""How many files the resource probe has open for real processes."""

from __future__ import annotations

import gc
import subprocess
import sys

import psutil
import pytest

from companion_core.providers import ProbeFailed, ProbeTarget
from companion_core.runtime.resources.probe import ProcessProbe

pytestmark = pytest.mark.integration


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_of_processes_stay_open_as_long_as_they_are_asked_for() -> None:
    me = psutil.Process()
    gc.collect()  # close now what earlier tests left open
    before = me.num_fds()
    probe = ProcessProbe(read_vram=lambda: 0)
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        for _ in range(3):
            probe.observe(ProbeTarget(pids=(me.pid, other.pid)))
            assert me.num_fds() == before + 2
        other.kill()
    probe.observe(ProbeTarget(pids=(me.pid, other.pid)))  # it has ended: its file is closed
    assert me.num_fds() == before + 1
    with pytest.raises(ProbeFailed):
        probe.observe(ProbeTarget(pids=()))
    assert me.num_fds() == before
