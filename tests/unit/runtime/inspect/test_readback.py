from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading

import psutil
import pytest
from runtime_parts import descriptors, wait_until

from companion_core.decisions.runtime_readback import Listener
from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.inspect import (
    descriptor_tables,
    readback,
)
from companion_core.runtime.inspect.readback import (
    environment_names,
    listeners,
)
from companion_core.runtime.inspect.socket_tables import listening_sockets
from companion_core.runtime.process import tree as process_tree

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
def test_a_listener_of_several_paths_is_one_of_tcp(require_real) -> None:
    me, before = os.getpid(), listeners([os.getpid()])
    multipath = None
    with contextlib.suppress(OSError):
        multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    require_real("multipath TCP", multipath is not None)
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


# Two threads: one shares the process's descriptors, one leaves them and listens. Ends with its
# input.
ASIDE = """
import ctypes, socket, sys, threading, time
def listen():
    assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        time.sleep(3600)
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
threading.Thread(target=listen, daemon=True).start()
sys.stdin.read()
"""


@linux_only
@pytest.mark.parametrize("kernel_compares", [True, False])
def test_a_thread_with_descriptors_of_its_own_hides_no_listener(
    kernel_compares, monkeypatch
) -> None:
    if not kernel_compares:
        monkeypatch.setattr(descriptor_tables, "_comparison", lambda: lambda _one, _other: False)
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", ASIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        shown = descriptors(process.pid).values()
        assert not any(each.startswith("socket:") for each in shown)
        assert listeners([process.pid]) == {Listener("tcp", "127.0.0.1", port)}
        process.kill()


@linux_only
def test_a_socket_stays_where_it_was_made_when_its_process_moves_to_another_network(
    require_real,
) -> None:
    code = (
        "import ctypes, os, socket, sys\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "user = 0x10000000 if os.geteuid() else 0\n"
        "moved = ctypes.CDLL(None).unshare(0x40000000 | user) == 0\n"
        "print(listening.getsockname()[1] if moved else 0, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = listeners([process.pid])
        process.kill()
    require_real("network namespaces for everybody", port != 0)
    assert found == {Listener("tcp", "127.0.0.1", port)}


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
def test_many_threads_that_share_another_table_are_looked_at_once(monkeypatch) -> None:
    tables = {1: "first", 2: "first", 3: "other", 4: "other", 5: "first", 6: "third"}
    monkeypatch.setattr(os, "listdir", lambda _folder: map(str, tables))
    monkeypatch.setattr(
        descriptor_tables, "_comparison", lambda: lambda one, other: tables[one] == tables[other]
    )
    assert descriptor_tables.table_holders(1) == [1, 3, 6]


@linux_only
def test_a_thread_that_cannot_be_read_is_none_unless_it_is_ending(monkeypatch) -> None:
    me, real = os.getpid(), readback._network_sockets

    def forbidden(holder: int):
        if holder == me:
            return real(holder)
        raise PermissionError

    monkeypatch.setattr(readback, "table_holders", lambda pid: [pid, GONE])
    monkeypatch.setattr(readback, "_network_sockets", forbidden)
    assert listeners([me]) is not None  # there is no such thread any more
    monkeypatch.setattr(readback, "thread_has_memory", lambda _thread: True)
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
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("failing", ["the threads", "a table", "an environment"])
def test_nothing_left_to_look_with_says_nothing_of_a_process(monkeypatch, number, failing) -> None:
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
def test_what_takes_more_than_a_page_is_read_whole() -> None:
    names = {f"NAME_{number:03}": "x" * 100 for number in range(200)}
    with subprocess.Popen(["/bin/sleep", "60"], env=names) as process:
        assert wait_until(lambda: process_tree.environment_is_set(process.pid))
        assert environment_names(process.pid) == names.keys()
        process.kill()
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(64)]
        inodes = {os.fstat(each.fileno()).st_ino for each in sockets}
        found = set(listening_sockets(os.getpid(), ["tcp"], inodes))
        assert found == {Listener("tcp", *each.getsockname()) for each in sockets}


@linux_only
@pytest.mark.parametrize("system", ["linux", "another"])
def test_a_look_that_is_forbidden_says_no_and_one_without_means_says_nothing(
    monkeypatch, system
) -> None:
    """Whoever is ending lets nobody look; whether it is, cannot be told either."""

    def without_means(*_args, **_options):
        raise OSError(errno.EMFILE, "no descriptor is left")

    def forbidden(*_args):
        raise PermissionError

    if system == "linux":
        monkeypatch.setattr(readback, "_network_sockets", forbidden)
        monkeypatch.setattr(readback, "_environment", forbidden)
        monkeypatch.setattr(process_tree, "read_entry", without_means)
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
    monkeypatch.setattr(readback, "thread_has_memory", lambda _thread: False)
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
