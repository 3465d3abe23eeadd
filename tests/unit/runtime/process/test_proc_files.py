"""What is said of a process where its files in /proc cannot be read."""

from __future__ import annotations

import errno
import os
import sys

import pytest
from proc_double import UNSAID, failing, read_with

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.process.proc_files import environment_is_set, has_memory, lives
from companion_core.runtime.process.tree import descendants, runtime_below

pytestmark = pytest.mark.unit

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

QUESTIONS = [lives, descendants, environment_is_set, lambda pid: runtime_below(pid, 1)]

ENDED = [errno.ENOENT, errno.ESRCH]


@linux_only
@pytest.mark.parametrize("number", ENDED)
def test_no_such_process_is_an_end(number, monkeypatch) -> None:
    read_with(monkeypatch, failing(number))
    me = os.getpid()
    assert [ask(me) for ask in QUESTIONS] == [False, (), False, None]
    assert not has_memory(me)


@linux_only
@pytest.mark.parametrize("number", UNSAID)
def test_any_other_failed_look_is_unreadable(number, monkeypatch) -> None:
    read_with(monkeypatch, failing(number))
    me = os.getpid()
    for ask in QUESTIONS:
        with pytest.raises(ProcessUnreadable):
            ask(me)
    if number in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:  # nothing was seen
        with pytest.raises(ProcessUnreadable):
            has_memory(me)
    else:
        assert has_memory(me)


@linux_only
def test_a_truncated_stat_file_is_unreadable(monkeypatch) -> None:
    read_with(monkeypatch, lambda _path: b"1 (cut")
    with pytest.raises(ProcessUnreadable):
        lives(os.getpid())
