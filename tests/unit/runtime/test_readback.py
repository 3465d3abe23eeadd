from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime import process_tree, readback
from companion_core.runtime.readback import environment_names, listeners

pytestmark = pytest.mark.unit
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1


def test_listening_sockets_of_a_process_are_found_and_others_are_not() -> None:
    me = os.getpid()
    before = listeners([me])
    assert before is not None
    with (
        socket.socket() as listening,
        socket.socket() as bound,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket() as client,
    ):
        for each in (listening, bound, datagrams):
            each.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        seen = listeners([me])
        assert seen is not None
        assert seen - before == {
            Listener("tcp", *listening.getsockname()),
            Listener("udp", *datagrams.getsockname()),
        }
        # A datagram socket that talks to one peer alone is no listener.
        with socket.socket(type=socket.SOCK_DGRAM) as talking:
            talking.connect(datagrams.getsockname())
            assert listeners([me]) == seen


@linux_only
def test_a_listener_of_several_paths_is_one_of_tcp() -> None:
    me, before = os.getpid(), listeners([os.getpid()])
    try:
        multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    except OSError:
        pytest.skip("no multipath TCP here")
    with multipath:
        multipath.bind(("127.0.0.1", 0))
        multipath.listen()
        seen = listeners([me])
        assert seen is not None
        assert seen - (before or set()) == {Listener("tcp", *multipath.getsockname())}


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


def test_a_process_that_is_gone_has_nothing() -> None:
    assert listeners([GONE]) == frozenset()
    with pytest.raises(ProcessLookupError):
        environment_names(GONE)


@linux_only
def test_what_cannot_be_read_is_none(monkeypatch) -> None:
    def forbidden(*_args):
        raise PermissionError

    monkeypatch.setattr(os, "listdir", forbidden)
    assert listeners([os.getpid()]) is None
    monkeypatch.setattr(readback, "read_entry", forbidden)
    assert environment_names(os.getpid()) is None


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
def test_an_environment_that_never_shows_is_none_while_its_process_lives(monkeypatch) -> None:
    monkeypatch.setattr(readback, "_EXEC_SECONDS", 0.01)
    monkeypatch.setattr(readback, "read_entry", lambda _path: b"")
    monkeypatch.setattr(readback, "environment_is_set", lambda _pid: False)
    assert environment_names(os.getpid()) is None
    with pytest.raises(ProcessLookupError):
        environment_names(GONE)


@linux_only
def test_an_empty_environment_has_no_names() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={}) as process:
        assert environment_names(process.pid) == frozenset()
        process.kill()


@linux_only
def test_without_proc_the_same_is_read_through_psutil() -> None:
    me = os.getpid()
    assert readback._environment_names_elsewhere(me) == environment_names(me)
    with socket.socket() as listening, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        datagrams.bind(("127.0.0.1", 0))
        assert readback._listeners_elsewhere([me]) == listeners([me])
    assert readback._listeners_elsewhere([GONE]) == frozenset()
    with pytest.raises(ProcessLookupError):
        readback._environment_names_elsewhere(GONE)


@linux_only
def test_an_environment_that_is_set_behind_the_look_is_read_again(monkeypatch) -> None:
    answers = [b"", b"SMUGGLED=1\0"]
    monkeypatch.setattr(readback, "read_entry", lambda _path: answers.pop(0))
    monkeypatch.setattr(readback, "environment_is_set", lambda _pid: True)
    assert environment_names(os.getpid()) == {"SMUGGLED"}


@linux_only
def test_one_that_gives_its_memory_back_has_ended_and_one_that_hides_has_not(monkeypatch) -> None:
    def forbidden(*_args):
        raise PermissionError

    monkeypatch.setattr(readback, "_EXEC_SECONDS", 0.01)
    monkeypatch.setattr(readback, "read_entry", forbidden)
    monkeypatch.setattr(readback, "_network_sockets", forbidden)
    assert environment_names(os.getpid()) is None
    assert listeners([os.getpid()]) is None
    monkeypatch.setattr(readback, "has_memory", lambda _pid: False)
    with pytest.raises(ProcessLookupError):
        environment_names(os.getpid())
    assert listeners([os.getpid()]) == frozenset()


@linux_only
def test_what_has_ended_has_no_memory() -> None:
    assert process_tree.has_memory(os.getpid())
    assert not process_tree.has_memory(GONE)
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not process_tree.has_memory(process.pid)
