"""The command line in a process of its own: output and streams that fail."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def run(arguments, **streams):
    return subprocess.run(
        [sys.executable, "-m", "companion_core", *arguments],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False, **streams,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("mode", [[], ["--json"]], ids=["text", "json"])
def test_output_to_a_full_disk_is_disk_unavailable(tmp_path, mode):
    with Path("/dev/full").open("w") as full:
        done = run(["--state-dir", str(tmp_path), "status", *mode], stdout=full)
    assert done.returncode == 4
    said, refusal = done.stderr.splitlines()
    assert said == "companion: No space left on device"
    assert refusal.split(": ")[1] == "disk_unavailable"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_changes_no_exit_code(tmp_path, closed):
    command = f'"{sys.executable}" -m companion_core --state-dir "{tmp_path}" token {closed}'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 5
