"""What the system refuses has a reason of the closed list, with the path or the limit named."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from companion_core.cli import main
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.plugin_host.calls import call_provider_sync
from companion_core.system import deadline
from companion_core.system.lacks import is_lack, lack_of, lacks_told, limit_told_in

pytestmark = pytest.mark.unit

LACKS = [
    (OSError(errno.ENOSPC, "full", "/a"), Reason.DISK_UNAVAILABLE, "/a: full"),
    (OSError(errno.EROFS, "read-only", b"/\xff"), Reason.DISK_UNAVAILABLE, "/\\xff: read-only"),
    (OSError(errno.ENOLCK, "no locks"), Reason.DISK_UNAVAILABLE, "/given: no locks"),
    (OSError(errno.EMFILE, "many", "/a"), Reason.LIMIT_REACHED, "ulimit -n"),
    (BlockingIOError(errno.EAGAIN, "again"), Reason.LIMIT_REACHED, "ulimit -u"),
    (MemoryError(), Reason.LIMIT_REACHED, "memory"),
    (RecursionError(), Reason.LIMIT_REACHED, "nested"),
    (RuntimeError("can't start new thread"), Reason.LIMIT_REACHED, "ulimit -u"),
]


@pytest.mark.parametrize(("error", "reason", "named"), LACKS, ids=repr)
def test_each_lack_has_its_reason_and_is_named(error, reason, named) -> None:
    assert is_lack(error)
    lack = lack_of(error, path=Path("/given"))
    assert (lack.reason, lack.exit_code) == (reason, 4)
    assert named in lack.detail
    with pytest.raises(EnvironmentUnavailable) as caught, lacks_told():
        raise error
    assert caught.value.reason is reason


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), CompanionError(Reason.OK)])
def test_a_fault_of_the_program_stays_one(error) -> None:
    assert not is_lack(error)
    with pytest.raises(type(error)), lacks_told():
        raise error


@pytest.mark.parametrize(("error", "reason", "named"), LACKS, ids=repr)
def test_the_command_line_names_it(monkeypatch, capsys, error, reason, named) -> None:
    def lacking(*_):
        raise error

    monkeypatch.setattr("companion_core.control.client.find_running", lacking)
    assert main(["--state-dir", "/nowhere", "status"]) == 4
    first, last = capsys.readouterr().err.splitlines()
    assert named.removeprefix("/given: ") in first
    assert last.startswith(f"companion: {reason.value}: ")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("bwrap: Creating new namespace failed: Resource temporarily unavailable", "ulimit -u"),
        ("libgomp: Thread creation failed: Resource temporarily unavailable", "ulimit -u"),
        ("RuntimeError: can't start new thread", "ulimit -u"),
        ("open /x: Too many open files", "ulimit -n"),
        ("open /x: Too many open files in system", "fs.file-max"),
    ],
)
def test_a_limit_is_told_from_what_a_program_printed(line, named) -> None:
    assert named in limit_told_in(["loading", line, "bye"])


def test_other_words_tell_of_no_limit() -> None:
    assert limit_told_in(["unavailable", "Resource temporarily", "unable to load model"]) == ""
    assert limit_told_in([]) == ""


def test_a_plugin_is_not_blamed_where_no_thread_is_left(monkeypatch) -> None:
    def refuse(_self):
        raise RuntimeError("can't start new thread")

    deadline._threads.forget_threads()  # or a thread of an earlier call would take this one
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(EnvironmentUnavailable) as caught:
        call_provider_sync("plugin", lambda: None, seconds=1)
    assert caught.value.reason is Reason.LIMIT_REACHED


def test_a_name_that_is_too_long_and_a_folder_that_is_not_there_are_named(tmp_path, capsys) -> None:
    long = tmp_path / ("n" * 300)
    assert main(["--state-dir", str(long), "status"]) == 4
    told = capsys.readouterr().err
    assert str(long) in told
    assert "companion: disk_unavailable: " in told
