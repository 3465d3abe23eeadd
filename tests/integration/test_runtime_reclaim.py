"""What a killed companion and its killed keeper left is ended after proof, else left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from companion_core.egress.live import LiveEgress
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import CompanionError, Reason
from companion_core.runtime.process.reclaim import reclaim, record, start_folders

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems"),
]

EGRESS = LiveEgress()


@pytest.fixture
def stale():
    """A runtime without a keeper, and a child of its own."""
    code = "import os, time; os.fork(); print('up', flush=True); time.sleep(3600)"
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        for _ in range(2):
            process.stdout.readline()
        yield process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "run"
    (folder / "0badcafe").mkdir(parents=True)
    (folder / "0badcafe" / "backend.sock").touch()
    (folder / "control.sock").touch()
    return tmp_path / "runtime.json", folder


def identity(process) -> ProcessIdentity:
    found = EGRESS.identify(process.pid)
    assert found is not None
    return found


def test_a_proved_tree_is_ended_and_its_folder_removed(stale, place) -> None:
    # covers: spawn_supervision/stale-reclaim
    path, folder = place
    record(path, [identity(stale)], folder / "0badcafe")
    assert reclaim(path, folder, EGRESS) == 2
    assert stale.wait(10) == -signal.SIGKILL
    assert not path.exists()
    assert [entry.name for entry in folder.iterdir()] == ["control.sock"]
    assert reclaim(path, folder, EGRESS) == 0


@pytest.mark.parametrize("change", [{"start_time": 1}, {"executable": "/usr/bin/other"}])
def test_a_reused_number_is_left_alone(stale, place, change) -> None:
    path, folder = place
    record(path, [replace(identity(stale), **change)], folder / "0badcafe")
    assert reclaim(path, folder, EGRESS) == 0
    assert stale.poll() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"boot": 1}',
        b'{"boot": "another boot", "processes": []}',
        b"\xff",
        b'{"boot": null, "processes": [[1, 2]]}',
    ],
)
def test_a_record_that_proves_nothing_ends_no_process(stale, place, content) -> None:
    path, folder = place
    path.write_bytes(content)
    path.chmod(0o600)
    assert reclaim(path, folder, EGRESS) == 0
    assert stale.poll() is None


def test_a_record_of_another_boot_ends_no_process(stale, place) -> None:
    path, folder = place
    record(path, [identity(stale)], folder / "0badcafe")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "boot": "before"}))
    path.chmod(0o600)
    assert reclaim(path, folder, EGRESS) == 0
    assert stale.poll() is None


def test_a_record_that_others_may_write_is_refused(stale, place) -> None:
    path, folder = place
    record(path, [identity(stale)], folder / "0badcafe")
    path.chmod(0o666)
    with pytest.raises(CompanionError) as caught:
        reclaim(path, folder, EGRESS)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    assert stale.poll() is None


class Deaf(LiveEgress):
    """A machine on which nothing can be ended."""

    def send_signal(self, identity, number) -> bool:
        return True


def test_a_process_that_does_not_end_is_told(stale, place) -> None:
    path, folder = place
    record(path, [identity(stale)], folder / "0badcafe")
    with pytest.raises(CompanionError) as caught:
        reclaim(path, folder, Deaf(), sleep=lambda _seconds: None)
    assert caught.value.reason is Reason.STALE_RUNTIME
    assert path.exists()


def test_only_folders_named_like_a_start_are_removed(place) -> None:
    path, folder = place
    for name in ("letters", "0badcafe.old", "0BADCAFE", "0badcaf"):
        (folder / name).mkdir()
    outside = path.parent / "outside"
    (outside / "letter").mkdir(parents=True)
    (folder / "cafe0bad").symlink_to(outside)
    assert reclaim(path, folder, EGRESS) == 0
    left = {entry.name for entry in folder.iterdir()}
    assert left == {"control.sock", "letters", "0badcafe.old", "0BADCAFE", "0badcaf", "cafe0bad"}
    assert (outside / "letter").is_dir()


def test_a_link_in_place_of_the_run_folder_is_refused(stale, place) -> None:
    path, folder = place
    record(path, [identity(stale)], folder / "0badcafe")
    folder.rename(path.parent / "mine")
    folder.symlink_to(path.parent / "mine")
    with pytest.raises(CompanionError) as caught:
        reclaim(path, folder, EGRESS)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    assert (folder / "0badcafe").is_dir()
    assert stale.poll() is None


def test_folders_deeper_than_recursion_allows_do_not_end_it(place) -> None:
    """A hostile runtime makes them in its own folder and exits; each later start goes on."""
    path, folder = place
    at = os.open(folder / "0badcafe", os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    for _ in range(20):  # each call is bounded in time, and goes on where the last one ended
        assert reclaim(path, folder, EGRESS) == 0
        if not start_folders(folder):
            break
    assert [entry.name for entry in folder.iterdir()] == ["control.sock"]
