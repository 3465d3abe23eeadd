"""What /proc tells of a real process that starts, ends or has lost its first thread."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from runtime_parts import wait_until

from companion_core.runtime.process import proc_files
from companion_core.runtime.process.proc_files import environment_is_set, lives

pytestmark = pytest.mark.integration

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1


@linux_only
def test_what_has_ended_has_no_memory() -> None:
    assert proc_files.has_memory(os.getpid())
    assert not proc_files.has_memory(GONE)
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not proc_files.has_memory(process.pid)


@linux_only
def test_a_process_whose_first_thread_has_ended_lives() -> None:
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=lambda: (print('up', flush=True), sys.stdin.read())).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2) of this thread alone
    )
    if os.uname().machine != "x86_64":
        code = code.replace("60", "93")
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert lives(process.pid)
        process.kill()


@linux_only
def test_an_empty_environment_is_told_apart_from_one_not_yet_set() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={}) as process:
        assert wait_until(lambda: environment_is_set(process.pid))  # execve(2) may not be done yet
        process.kill()
    assert not environment_is_set(process.pid)
