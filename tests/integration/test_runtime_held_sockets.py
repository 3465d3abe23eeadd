"""Which real sockets of a process listen, as the sockets themselves tell."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.inspect import held_sockets, readback
from companion_core.runtime.inspect.held_sockets import listening_among

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="pidfd_getfd(2)"),
]


def held(*opened: socket.socket) -> dict[int, tuple[int, str]]:
    def kind(each: socket.socket) -> str:
        protocol = "tcp" if each.type == socket.SOCK_STREAM else "udp"
        return protocol + ("6" if each.family == socket.AF_INET6 else "")

    return {os.fstat(each.fileno()).st_ino: (each.fileno(), kind(each)) for each in opened}


def test_what_listens_is_told_from_what_is_connected_or_bound_alone() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket() as bound,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket(type=socket.SOCK_DGRAM) as talking,
        socket.socket(type=socket.SOCK_DGRAM) as unbound,
        socket.create_connection(listening.getsockname()) as client,
    ):
        bound.bind(("127.0.0.1", 0))
        datagrams.bind(("127.0.0.1", 0))
        talking.connect(datagrams.getsockname())
        every = held(listening, bound, datagrams, talking, unbound, client)
        found, unasked = listening_among(os.getpid(), every)
        assert found == {
            Listener("tcp", *listening.getsockname()),
            Listener("udp", *datagrams.getsockname()),
        }
        assert unasked == set()


@pytest.mark.parametrize(
    ("address", "seen"), [("", "::"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
def test_addresses_are_as_the_rules_know_them(address, seen, require_real) -> None:
    require_real("sockets of IPv4 and IPv6 in one", socket.has_dualstack_ipv6())
    with socket.create_server(
        (address, 0), family=socket.AF_INET6, dualstack_ipv6=address != "::1"
    ) as listening:
        expected = {Listener("tcp", seen, listening.getsockname()[1])}
        assert listening_among(os.getpid(), held(listening)) == (expected, set())


@pytest.mark.parametrize("other", ["socket", "file", "nothing"])
def test_a_descriptor_number_that_was_reused_is_not_asked_and_leaks_nothing(other) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_server(("127.0.0.1", 0)) as moved,
        socket.socket() as another,
        Path(os.devnull).open() as file,
    ):
        number = {"socket": another.fileno(), "file": file.fileno(), "nothing": 2**20 + 1}[other]
        inode = os.fstat(moved.fileno()).st_ino
        gc.collect()  # close now what earlier tests left open
        opened = psutil.Process().num_fds()
        found, unasked = listening_among(os.getpid(), held(listening) | {inode: (number, "tcp")})
        assert found == {Listener("tcp", *listening.getsockname())}
        assert unasked == {inode}
        assert psutil.Process().num_fds() == opened


def test_a_socket_that_does_not_tell_its_peer_counts_as_not_asked(monkeypatch) -> None:
    def failing(_taken: socket.socket) -> bool:
        raise OSError

    monkeypatch.setattr(held_sockets, "_has_peer", failing)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        opened = psutil.Process().num_fds()
        every = held(datagrams)
        assert listening_among(os.getpid(), every) == (set(), set(every))
        assert psutil.Process().num_fds() == opened


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("failing", ["pidfd_open", "pidfd_getfd", "socket"])
def test_without_a_descriptor_to_look_with_nothing_is_said(monkeypatch, number, failing) -> None:
    """The tables do not list what was made in a third network: they do not stand for a look."""

    def without_means(*_args: object) -> int:
        raise OSError(number, os.strerror(number))

    def failed(*_args: int) -> int:
        ctypes.set_errno(number)
        return -1

    with socket.create_server(("127.0.0.1", 0)) as listening:
        every = held(listening)
        if failing == "pidfd_open":
            monkeypatch.setattr(os, "pidfd_open", without_means)
        elif failing == "pidfd_getfd":
            monkeypatch.setattr(held_sockets, "_system_call", lambda: failed)
        else:
            monkeypatch.setattr(held_sockets, "_our_network", without_means)
        opened = psutil.Process().num_fds()
        with pytest.raises(ProcessUnreadable):
            listening_among(os.getpid(), every)
        assert psutil.Process().num_fds() == opened


def test_a_duplicate_that_is_no_socket_is_closed() -> None:
    with Path(os.devnull).open() as file:
        inode = os.fstat(file.fileno()).st_ino
        opened = psutil.Process().num_fds()
        every = {inode: (file.fileno(), "tcp")}
        assert listening_among(os.getpid(), every) == (set(), {inode})
        assert psutil.Process().num_fds() == opened


# Listens in a network of its own on the port that it is told, and says which socket that is.
ELSEWHERE = """
import ctypes, fcntl, os, socket, struct, sys
user = 0x10000000 if os.geteuid() else 0
moved = ctypes.CDLL(None).unshare(0x40000000 | user) == 0
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
listening = socket.socket()
if moved:
    listening.bind(("127.0.0.1", int(sys.argv[1])))
    listening.listen()
shown = (listening.fileno(), os.fstat(listening.fileno()).st_ino) if moved else (0, 0)
print(*shown, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kernel", ["tells the network", "does not"])
def test_a_listener_in_another_network_is_found_and_is_not_ours(
    monkeypatch, require_real, kernel
) -> None:
    """Before Linux 5.14 a socket does not tell its network: what is ours is in our tables."""
    if kernel == "does not":
        monkeypatch.setattr(held_sockets, "_our_network", lambda: None)
    with (
        socket.create_server(("127.0.0.1", 0)) as ours,
        subprocess.Popen(
            [sys.executable, "-IS", "-c", ELSEWHERE, str(ours.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        number, inode = map(int, process.stdout.readline().split())
        try:
            require_real("network namespaces for everybody", number != 0)
            here = Listener("tcp", *ours.getsockname())
            there = replace(here, other_network=True)
            assert readback.listeners([process.pid]) == {there}
            assert readback.find_listener([process.pid], here) is None
            known = readback.ListeningSocket(process.pid, number, inode, "tcp")
            assert not readback.still_listens(known, here)
            assert readback.still_listens(known, there)
            found = readback.find_listener([os.getpid()], here)
            assert found is not None
            assert found.inode == os.fstat(ours.fileno()).st_ino
            assert readback.find_listener([os.getpid()], there) is None
        finally:
            process.kill()


def test_of_a_process_that_is_gone_nothing_is_asked() -> None:
    assert listening_among(2**22 + 1, {1: (2, "tcp")}) == (set(), {1})


def test_a_socket_whose_owner_lingers_is_not_waited_for() -> None:
    """The last one to close it waits until its peer has taken everything."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        owner.connect(listening.getsockname())
        peer, _ = listening.accept()
        owner.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                owner.send(bytes(65536))
        taken = socket.socket(fileno=os.dup(owner.fileno()))
        owner_number = owner.detach()
        os.close(owner_number)
        closing = threading.Thread(
            target=held_sockets._close, args=(taken,), kwargs={"may_wait": True}, daemon=True
        )
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
        peer.close()


def test_a_socket_that_moved_or_cannot_be_duplicated_is_found_in_the_tables(monkeypatch) -> None:
    def moved(holder: int, real=readback._network_sockets):
        return {inode: (2**20 + 1, table) for inode, (_, table) in real(holder).items()}

    def denied(*_args: int) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    with socket.create_server(("127.0.0.1", 0)) as listening:
        here = Listener("tcp", *listening.getsockname())
        found = readback.listeners([os.getpid()])
        assert found is not None
        assert here in found
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(readback, "_network_sockets", moved)
            assert readback.listeners([os.getpid()]) == found
        monkeypatch.setattr(held_sockets, "_system_call", lambda: denied)
        assert readback.listeners([os.getpid()]) == found


@pytest.mark.parametrize("asked", [True, False])
def test_of_unix_sockets_only_a_name_without_a_file_is_open_to_others(
    monkeypatch, tmp_path, asked
) -> None:
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
    names = [f"@companion-test-{os.getpid()}-{int(kind)}" for kind in kinds]
    with contextlib.ExitStack() as opened:
        for kind, name in zip(kinds, names, strict=True):
            in_a_file, without, bound, client = (
                opened.enter_context(socket.socket(socket.AF_UNIX, kind)) for _ in range(4)
            )
            in_a_file.bind(str(tmp_path / str(int(kind))))
            without.bind("\0" + name[1:])
            if kind != socket.SOCK_DGRAM:
                bound.bind("\0" + name[1:] + "-bound")
                in_a_file.listen()
                without.listen()
            client.connect("\0" + name[1:])
            if kind != socket.SOCK_DGRAM:
                opened.enter_context(without.accept()[0])
        before = Path("/proc/self/fd").iterdir
        if not asked:
            monkeypatch.setattr(held_sockets, "_system_call", lambda: None)
        open_files = len([*before()])
        found = readback.listeners([os.getpid()]) or frozenset()
        assert {each for each in found if each.protocol == "unix"} == {
            Listener("unix", name, 0) for name in names
        }
        assert len([*before()]) == open_files


@pytest.mark.parametrize("default", [None, 5.0])
def test_a_blocking_socket_still_blocks_for_its_owner(default) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        here = Listener("tcp", *listening.getsockname())
        socket.setdefaulttimeout(default)
        try:
            assert here in (readback.listeners([os.getpid()]) or ())
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(listening.fileno())


def test_no_table_is_walked_for_sockets_that_can_be_asked(monkeypatch) -> None:
    def walked(*_args):
        raise AssertionError

    monkeypatch.setattr(readback, "listening_sockets", walked)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert Listener("tcp", *listening.getsockname()) in (
            readback.listeners([os.getpid()]) or ()
        )
