"""The ways in which a person, a shell or a service manager may start the command."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="descriptors and links of POSIX"),
]

STREAMS = ("<&-", ">&-", "2>&-")
CLOSED = [closed for count in (1, 2, 3) for closed in itertools.combinations(STREAMS, count)]
FILLED = """
import os, sys
from companion_core.system.standard_streams import fill_standard_streams
fill_standard_streams()
kept = [os.get_inheritable(number) for number in range(3)]
sys.exit(0 if all(kept) and os.open(os.devnull, os.O_RDONLY) > 2 else 1)
"""


@pytest.mark.parametrize("closed", CLOSED, ids=" ".join)
def test_each_closed_standard_descriptor_is_filled(closed):
    command = " ".join(["exec", f"'{sys.executable}' -c '{FILLED}'", *closed])
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("closed", [("<&-",), (">&-", "2>&-"), STREAMS], ids=" ".join)
def test_up_detached_with_closed_descriptors(world, closed):
    world.publish()
    world.configure()
    command = " ".join(["exec", *map("'{}'".format, world.argv("up", "--detach")), *closed])
    assert subprocess.run(["sh", "-c", command], timeout=120, check=False).returncode == 0
    assert world.status()["available"] is True
    assert world.companion("down").returncode == 0
    assert world.wait_until_alone() == []


def test_an_interpreter_and_folders_that_are_named_with_two_dots(world):
    world.publish()
    world.configure()
    (world.folder / "a").mkdir()
    here = world.folder / "linked"
    here.symlink_to(world.folder / "a")
    python = os.path.relpath(sys.executable, world.folder / "a")
    named = (world.config_file, world.state)
    config, state = (os.path.relpath(path, world.folder / "a") for path in named)
    argv = [python, "-m", "companion_core", "--config", config, "--state-dir", state]

    def companion(*arguments):
        return subprocess.run(
            [*argv, *arguments], cwd=here, capture_output=True, text=True, timeout=120, check=False
        )

    up = companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["available"] is True
    assert companion("down").returncode == 0
    assert world.wait_until_alone() == []


def test_a_working_folder_that_was_removed_is_told_and_absolute_paths_work(world):
    world.publish()
    world.configure()
    gone = world.folder / "gone"
    gone.mkdir()
    relative = [sys.executable, "-m", "companion_core", "--state-dir", "state", "status"]

    def run_there(argv):
        inside = "import os, subprocess, sys; os.rmdir(os.getcwd()); "
        inside += "sys.exit(subprocess.call(sys.argv[1:]))"
        gone.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", inside, *argv],
            cwd=gone, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    refused = run_there(relative)
    assert refused.returncode == 2, refused.stderr
    assert "use an absolute path" in refused.stderr
    up = run_there(world.argv("up", "--detach"))
    assert up.returncode == 0, up.stderr
    assert world.companion("down").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="process namespaces")
def test_a_companion_in_another_process_namespace_is_found_and_stopped(world):
    unshare = shutil.which("unshare")
    apart = [str(unshare), "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if unshare is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("this machine makes no namespaces")
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0

    def elsewhere(*arguments):
        return subprocess.run(
            [*apart, *world.argv(*arguments)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    status = elsewhere("status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["available"] is True
    down = elsewhere("down")
    assert (down.returncode, down.stdout) == (0, "stopped\n"), down.stderr
    assert world.wait_until_alone() == []
    assert not Path(world.state / "instances" / "default" / "state.json").exists()
