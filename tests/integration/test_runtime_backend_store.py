"""The backend's store, made by an ordinary process that nobody may look into."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import runtime_parts as parts

pytestmark = pytest.mark.integration

UNDUMPABLE = """
import ctypes, os, sys, threading
from pathlib import Path
from companion_core.runtime.start import model_link
import runtime_parts
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
folder = Path(sys.argv[1])
(folder / "model").write_bytes(b"weights")
(folder / "model").chmod(0o400)
model = runtime_parts.verified_model(folder / "model")
linked = []
worker = threading.Thread(
    target=lambda: linked.append(model_link.make_link(model.files[0], folder / "link"))
)
worker.start()
worker.join()
print(os.getuid(), linked, (folder / "link").samefile(folder / "model"))
model.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what other processes may read of it")
def test_an_ordinary_undumpable_process_links_too(require_real) -> None:
    """The companion is such a process: no other may look into it, and it has no privileges."""
    user = parts.ORDINARY_USER if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        program = ["-c", UNDUMPABLE, folder]
        child = parts.run_as(user, program, Path(folder), stdout=subprocess.PIPE)
        require_real("a Python for an ordinary user", child is not None)
        output, _ = child.communicate(timeout=60)
    assert output.decode().split() == [str(user), "[True]", "True"]
