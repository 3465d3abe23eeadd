"""What is read back of processes, where the system's answers are made up."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading

import psutil
import pytest

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.inspect import readback
from companion_core.runtime.inspect.readback import environment_names, listeners
from companion_core.runtime.process import proc_files

pytestmark = pytest.mark.unit

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1


@linux_only
def test_sockets_that_nobody_reaches_from_outside_do_not_count_and_unknown_ones_do(
    monkeypatch,
) -> None:
    me = os.getpid()
    before = listeners([me])
    with (
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    ):
        assert listeners([me]) == before
        real, mine = os.getxattr, str(local.fileno())

        def odd(path: str, name: str) -> bytes:
            return b"SCTP\0" if path.endswith(f"/{mine}") else real(path, name)

        monkeypatch.setattr(os, "getxattr", odd)
        assert listeners([me]) is None


@linux_only
def test_threads_that_share_their_process_s_descriptors_are_looked_at_once(monkeypatch) -> None:
    looks: list[int] = []
    real = readback._network_sockets
    monkeypatch.setattr(
        readback, "_network_sockets", lambda holder: looks.append(holder) or real(holder)
    )
    done, started = threading.Event(), threading.Barrier(9)

    def live() -> None:
        started.wait()
        done.wait()

    threads = [threading.Thread(target=live) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        started.wait()
        assert listeners([os.getpid()]) is not None
        assert looks == [os.getpid()]
    finally:
        done.set()
        for thread in threads:
            thread.join()


@linux_only
def test_an_unreadable_thread_denies_unless_it_is_ending(monkeypatch) -> None:
    me, real = os.getpid(), readback._network_sockets

    def forbidden(holder: int):
        if holder == me:
            return real(holder)
        raise PermissionError

    monkeypatch.setattr(readback, "table_holders", lambda pid: [pid, GONE])
    monkeypatch.setattr(readback, "_network_sockets", forbidden)
    assert listeners([me]) is not None  # the thread has ended
    monkeypatch.setattr(readback, "thread_has_memory", lambda _thread: True)
    assert listeners([me]) is None


def test_a_process_that_is_gone_has_nothing() -> None:
    assert listeners([GONE]) == frozenset()
    with pytest.raises(ProcessLookupError):
        environment_names(GONE)


@linux_only
def test_an_unreadable_process_gives_none(monkeypatch) -> None:
    def forbidden(*_args):
        raise PermissionError

    monkeypatch.setattr(os, "listdir", forbidden)
    assert listeners([os.getpid()]) is None
    monkeypatch.setattr(readback, "read_entry", forbidden)
    assert environment_names(os.getpid()) is None


@linux_only
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("failing", ["the threads", "a table", "an environment"])
def test_a_lack_of_descriptors_or_memory_says_nothing_of_a_process(
    monkeypatch, number, failing
) -> None:
    def out_of_means(*_args, real=os.listdir):
        if failing == "a table" and str(_args[0]).endswith("/task"):
            return real(*_args)
        raise OSError(number, os.strerror(number))

    if failing == "an environment":
        monkeypatch.setattr(readback, "read_entry", out_of_means)
        ask = environment_names
    else:
        monkeypatch.setattr(os, "listdir", out_of_means)
        ask = lambda pid: listeners([pid])  # noqa: E731 - the same question
    with pytest.raises(ProcessUnreadable):
        ask(os.getpid())


@linux_only
@pytest.mark.parametrize("system", ["linux", "another"])
def test_a_lack_of_means_is_told_apart_from_a_forbidden_look(monkeypatch, system) -> None:
    """A process that ends lets nobody look; without means, nobody can tell whether it ends."""

    def without_means(*_args, **_options):
        raise OSError(errno.EMFILE, "no descriptor is left")

    def forbidden(*_args):
        raise PermissionError

    if system == "linux":
        monkeypatch.setattr(readback, "_network_sockets", forbidden)
        monkeypatch.setattr(readback, "_environment", forbidden)
        monkeypatch.setattr(proc_files, "read_entry", without_means)
        asked = [environment_names, lambda pid: listeners([pid])]
        monkeypatch.setattr(readback, "table_holders", lambda pid: [pid])
    else:
        for name in ("environ", "net_connections"):
            monkeypatch.setattr(psutil.Process, name, without_means)
        asked = [
            readback._environment_names_elsewhere,
            lambda pid: readback._listeners_elsewhere([pid]),
        ]
    for ask in asked:
        with pytest.raises(ProcessUnreadable):
            ask(os.getpid())


@linux_only
def test_a_process_that_is_being_executed_is_waited_for(monkeypatch) -> None:
    """Its entry is there, its environment is not yet."""
    answers = [b"", b"", b"", b"PATH=/bin\0SMUGGLED=1\0"]
    monkeypatch.setattr(readback, "read_entry", lambda _path: answers.pop(0))
    monkeypatch.setattr(readback, "environment_is_set", lambda _pid: False)
    with pytest.raises(BlockingIOError):
        environment_names(os.getpid(), wait=False)
    assert environment_names(os.getpid()) == {"PATH", "SMUGGLED"}
    assert answers == []


@linux_only
def test_an_environment_that_never_shows_is_unreadable_while_its_process_lives(monkeypatch) -> None:
    monkeypatch.setattr(readback, "read_entry", lambda _path: b"")
    monkeypatch.setattr(readback, "environment_is_set", lambda _pid: False)
    assert environment_names(os.getpid(), longest=0.01) is None
    with pytest.raises(ProcessLookupError):
        environment_names(GONE)


@linux_only
def test_an_environment_that_is_set_after_the_look_is_read_again(monkeypatch) -> None:
    answers = [b"", b"SMUGGLED=1\0"]
    monkeypatch.setattr(readback, "read_entry", lambda _path: answers.pop(0))
    monkeypatch.setattr(readback, "environment_is_set", lambda _pid: True)
    assert environment_names(os.getpid()) == {"SMUGGLED"}


@linux_only
def test_a_process_without_memory_has_ended_and_a_hidden_one_has_not(monkeypatch) -> None:
    def forbidden(*_args):
        raise PermissionError

    monkeypatch.setattr(readback, "read_entry", forbidden)
    monkeypatch.setattr(readback, "_network_sockets", forbidden)
    assert environment_names(os.getpid(), longest=0.01) is None
    assert listeners([os.getpid()]) is None
    monkeypatch.setattr(readback, "has_memory", lambda _pid: False)
    monkeypatch.setattr(readback, "thread_has_memory", lambda _thread: False)
    with pytest.raises(ProcessLookupError):
        environment_names(os.getpid())
    assert listeners([os.getpid()]) == frozenset()
