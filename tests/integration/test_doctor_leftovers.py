"""What a dead companion left is told, and `--repair` removes it only after proof."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doctor_parts import make_situation
from staging_parts import leave

from companion_core.control.client import InstanceLock
from companion_core.doctor import leftovers, state
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.runtime.process.reclaim import record
from companion_core.system.folder_lock import lock_folder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets of POSIX systems"),
]

PART = f".{'ab' * 32}.{'0' * 16}.part"


def look(tmp_path: Path, *, repair: bool = False):
    checks = (*state.checks(), *leftovers.checks())
    rows = run_checks(checks, make_situation(tmp_path, repair=repair))
    return {row.id: row for row in rows}


@pytest.fixture
def paths(tmp_path):
    paths = make_situation(tmp_path).paths
    paths.prepare()
    paths.lock_file.touch(0o600)
    return paths


@pytest.fixture
def orphan():
    """A process such as a killed companion and its killed keeper leave."""
    code = "import time; print('up', flush=True); time.sleep(3600)"
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def write_state(paths, pid: int, start_time: float) -> None:
    content = {"pid": pid, "start_time": start_time, "control_socket": "/none"}
    paths.state_file.write_text(json.dumps(content))
    paths.state_file.chmod(0o600)


def test_a_companion_that_ended_in_order_leaves_nothing(tmp_path, paths):
    rows = look(tmp_path, repair=True)
    assert rows["companion"].reason is Reason.NOT_RUNNING
    assert rows["companion"].status is Status.SKIP
    for name in ("state-file", "processes", "downloads"):
        assert rows[name].status is Status.OK


def test_a_stale_state_file_and_socket_are_told_and_removed(tmp_path, paths):
    write_state(paths, 2**22 + 1, 1)
    control = paths.run_folder() / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
    told = look(tmp_path)["state-file"]
    assert (told.status, told.reason) == (Status.FAIL, Reason.STALE_STATE)
    assert told.finding.fix == state.REPAIR
    assert control.exists()
    assert paths.state_file.exists()
    assert look(tmp_path, repair=True)["state-file"].status is Status.REPAIRED
    assert not control.exists()
    assert not paths.state_file.exists()
    assert look(tmp_path, repair=True)["state-file"].status is Status.OK


def test_a_link_in_place_of_the_state_file_is_left_alone(tmp_path, paths):
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    paths.state_file.symlink_to(letter)
    rows = look(tmp_path, repair=True)
    assert rows["state-file"].reason is Reason.STATE_PATH_UNSAFE
    assert paths.state_file.is_symlink()
    assert letter.read_text() == "mine"


def test_a_link_in_place_of_the_run_folder_is_told_and_not_followed(tmp_path, paths):
    letters = tmp_path / "letters"
    (letters / "0badcafe").mkdir(parents=True)
    (letters / "control.sock").touch()
    letters.chmod(0o755)
    paths.run_folder_path().symlink_to(letters)
    rows = look(tmp_path, repair=True)
    for name in ("state-folder", "state-file", "processes"):
        assert rows[name].reason is Reason.STATE_PATH_UNSAFE, name
    assert {path.name for path in letters.iterdir()} == {"0badcafe", "control.sock"}
    assert letters.stat().st_mode & 0o777 == 0o755
    with pytest.raises(CompanionError):
        paths.run_folder()


def test_a_lock_that_fails_is_not_taken_for_a_running_companion(tmp_path, paths, monkeypatch):
    def fail(_lock: object) -> None:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE)

    write_state(paths, 2**22 + 1, 1)
    # A file system without locks cannot be had here.
    monkeypatch.setattr(InstanceLock, "acquire", fail)
    row = look(tmp_path)["state-file"]
    assert (row.status, row.reason) == (Status.FAIL, Reason.DISK_UNAVAILABLE)


def test_the_state_of_a_companion_that_starts_now_is_left_alone(tmp_path, paths):
    write_state(paths, 2**22 + 1, 1)
    (paths.run_folder() / "0badcafe").mkdir()
    lock = InstanceLock(paths.lock_file)
    lock.acquire()
    try:
        rows = look(tmp_path, repair=True)
    finally:
        lock.release()
    assert {rows[name].status for name in ("state-file", "processes")} == {Status.OK}
    assert paths.state_file.exists()
    assert (paths.run_folder() / "0badcafe").exists()


def test_a_runtime_that_outlived_its_companion_is_told_and_ended(tmp_path, paths, orphan):
    egress = LiveEgress()
    identity = egress.identify(orphan.pid)
    assert identity is not None
    folder = paths.run_folder() / "0badcafe"
    folder.mkdir(mode=0o700)
    record(paths.runtime_record, [identity], folder)
    told = look(tmp_path)["processes"]
    assert (told.status, told.reason) == (Status.FAIL, Reason.STALE_RUNTIME)
    assert orphan.poll() is None, "nothing is ended unasked"
    assert look(tmp_path, repair=True)["processes"].status is Status.REPAIRED
    assert orphan.wait(10) == -signal.SIGKILL
    assert not folder.exists()
    assert not paths.runtime_record.exists()
    assert look(tmp_path)["processes"].status is Status.OK


def test_a_process_that_is_not_proved_is_left_alone(tmp_path, paths, orphan):
    egress = LiveEgress()
    identity = egress.identify(orphan.pid)
    assert identity is not None
    record(paths.runtime_record, [type(identity)(identity.pid, 1, identity.executable)], tmp_path)
    assert look(tmp_path)["processes"].reason is Reason.STALE_STATE
    assert look(tmp_path, repair=True)["processes"].status is Status.REPAIRED
    assert orphan.poll() is None


def test_a_download_that_was_cut_off_is_told_and_removed(tmp_path, paths):
    part, other = paths.models / PART, paths.models / ".notes.part"
    for path in (part, other):
        path.write_bytes(b"x" * 1000)
        path.chmod(0o600)
    told = look(tmp_path)["downloads"]
    assert (told.status, told.reason) == (Status.FAIL, Reason.STALE_STATE)
    assert part.exists()
    assert look(tmp_path, repair=True)["downloads"].status is Status.REPAIRED
    assert not part.exists()
    assert other.exists(), "it is not named as ours are"
    assert look(tmp_path, repair=True)["downloads"].status is Status.OK


def test_a_download_that_the_next_start_can_resume_is_kept(tmp_path, paths):
    part = leave(paths.models, "cd" * 32)
    row = look(tmp_path, repair=True)["downloads"]
    assert (row.status, row.finding.detail) == (
        Status.OK,
        "1 cut off, 0.0 MB: the next start resumes from it",
    )
    part.with_suffix(".resume").unlink()
    assert look(tmp_path, repair=True)["downloads"].status is Status.REPAIRED
    assert list(paths.models.iterdir()) == []


@pytest.mark.parametrize("days", [-20_000, 15, 20_000], ids=["ahead", "old", "1970"])
def test_the_age_of_a_download_is_left_to_the_next_start(tmp_path, paths, days):
    part = leave(paths.models, "cd" * 32, age=days * 86_400)
    assert look(tmp_path, repair=True)["downloads"].status is Status.OK
    assert part.exists()


def test_a_download_that_cannot_be_resumed_is_removed(tmp_path, paths):
    part = leave(paths.models, "cd" * 32, validator=None)
    assert look(tmp_path)["downloads"].reason is Reason.STALE_STATE
    assert look(tmp_path, repair=True)["downloads"].status is Status.REPAIRED
    assert not part.exists()


def test_a_folder_in_the_place_of_a_download_is_named_and_left_alone(tmp_path, paths):
    (paths.models / PART).mkdir()
    for repair in (False, True):
        row = look(tmp_path, repair=repair)["downloads"]
        assert (row.status, row.reason) == (Status.FAIL, Reason.STATE_PATH_UNSAFE)
        assert "abab" in row.finding.detail
        assert "ab" * 32 not in row.finding.detail
    assert (paths.models / PART).is_dir()


def test_a_download_under_way_is_left_alone(tmp_path, paths):
    (paths.models / PART).touch(0o600)
    with lock_folder(paths.models, threading.Event()):
        row = look(tmp_path, repair=True)["downloads"]
    assert row.status is Status.OK
    assert (paths.models / PART).exists()


def test_a_link_named_like_a_download_is_left_alone(tmp_path, paths):
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    (paths.models / PART).symlink_to(letter)
    look(tmp_path, repair=True)
    assert (paths.models / PART).is_symlink()
    assert letter.exists()
    assert os.path.lexists(paths.models / PART)
