from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime import socket_tables
from companion_core.runtime.socket_tables import Diagnosis, listening_sockets

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets as Linux lists them"),
]


ALL = ("tcp", "tcp6", "udp", "udp6")


@pytest.mark.parametrize(
    ("address", "text"),
    [("127.0.0.1", b"0100007F"), ("0.0.0.0", b"00000000"), ("192.168.1.2", b"0201A8C0")],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="as such a machine prints it")
def test_ipv4_addresses_as_the_kernel_prints_them(address, text) -> None:
    assert socket_tables._address(text) == address


@pytest.mark.skipif(sys.byteorder != "little", reason="as such a machine prints it")
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("::1", b"00000000000000000000000001000000"),
        ("::", b"0" * 32),
        ("127.0.0.1", b"0000000000000000FFFF00000100007F"),
        ("0.0.0.0", b"0000000000000000FFFF000000000000"),
    ],
)
def test_ipv6_addresses_as_the_kernel_prints_them(address, text) -> None:
    assert socket_tables._address(text) == address


def inode_of(opened: socket.socket) -> int:
    return os.fstat(opened.fileno()).st_ino


def test_the_kernel_and_its_tables_tell_the_same(monkeypatch) -> None:
    me = os.getpid()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket(type=socket.SOCK_DGRAM) as talking,
        socket.create_connection(listening.getsockname()) as client,
    ):
        datagrams.bind(("127.0.0.1", 0))
        talking.connect(datagrams.getsockname())
        own = {inode_of(each) for each in (listening, datagrams, talking, client)}
        asked = set(listening_sockets(me, ALL, own))
        assert asked == {
            Listener("tcp", *listening.getsockname()),
            Listener("udp", *datagrams.getsockname()),
        }
        assert not list(listening_sockets(me, ALL, {inode_of(talking), inode_of(client)}))

        def silent(*_args):
            raise OSError

        monkeypatch.setattr(socket_tables, "_ask_here", silent)
        assert set(listening_sockets(me, ALL, own)) == asked


def test_a_dual_listener_is_the_widest_address(require_real) -> None:
    require_real("sockets of IPv4 and IPv6 in one", socket.has_dualstack_ipv6())
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as wide:
        found = list(listening_sockets(os.getpid(), ALL, {inode_of(wide)}))
        assert found == [Listener("tcp", "::", wide.getsockname()[1])]


def test_a_process_that_is_gone_is_said_so() -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        list(listening_sockets(2**22 + 1, ALL, ()))


def test_an_answer_that_is_none_leads_to_the_tables(monkeypatch) -> None:
    """An interface that this kernel does not know is answered with an error."""
    monkeypatch.setattr(socket_tables, "_SOCK_DIAG_BY_FAMILY", 21)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = Listener("tcp", *listening.getsockname())
        assert list(listening_sockets(os.getpid(), ALL, {inode_of(listening)})) == [at]


def test_a_kernel_without_the_protocol_s_part_leads_to_the_tables(monkeypatch) -> None:
    """Such a dump ends at once, and its end carries the error."""
    sctp = 132  # nothing here has loaded it
    family, _, state = socket_tables._TABLES["tcp"]
    monkeypatch.setitem(socket_tables._TABLES, "tcp", (family, sctp, state))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = Listener("tcp", *listening.getsockname())
        assert list(listening_sockets(os.getpid(), ["tcp"], {inode_of(listening)})) == [at]


# Listens in a network of its own, tells where, and hands its socket of sock_diag(7) over.
ELSEWHERE = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as line, socket.create_server(("127.0.0.1", 0)) as here:
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)
    said = f"{os.fstat(here.fileno()).st_ino} {here.getsockname()[1]}"
    socket.send_fds(line, [said.encode()], [kernel.fileno()])
    line.recv(1)
"""


def test_another_network_is_asked_through_a_socket_that_was_made_in_it(
    require_real, monkeypatch
) -> None:
    bubblewrap = shutil.which("bwrap")
    require_real("bubblewrap", bubblewrap)
    line, far_end = socket.socketpair()
    command = [bubblewrap, "--unshare-net", "--dev-bind", "/", "/", "--die-with-parent"]
    program = [sys.executable, "-IS", "-c", ELSEWHERE, str(far_end.fileno())]
    with line, subprocess.Popen([*command, *program], pass_fds=[far_end.fileno()]) as started:
        far_end.close()
        line.settimeout(30)
        said, (descriptor,), _, _ = socket.recv_fds(line, 64, 1)
        inode, port = map(int, said.split())
        found = [Listener("tcp", "127.0.0.1", port)]
        (elsewhere,) = psutil.Process(started.pid).children(recursive=True)

        def look(inside: Diagnosis | None) -> list[Listener]:
            return list(listening_sockets(elsewhere.pid, ["tcp"], {inode}, inside=inside))

        assert look(None) == found
        inside = Diagnosis(socket.socket(fileno=descriptor))
        here = Diagnosis(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
        assert inside.namespace == Path(f"/proc/{elsewhere.pid}/ns/net").stat().st_ino
        assert here.namespace == Path("/proc/self/ns/net").stat().st_ino
        assert look(here) == found  # it tells of another network, and is not asked

        tables = []
        monkeypatch.setattr(socket_tables, "_read_table", lambda *_: tables.append(1) or [])
        assert look(inside) == found
        assert tables == []
        inside.close()
        here.close()
        assert look(inside) == []
        assert tables == [1]
        closed = Diagnosis(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
        closed.close()
        assert look(closed) == []
        assert tables == [1, 1]
        line.close()


def test_an_answer_to_a_question_that_was_given_up_is_no_answer_to_the_next() -> None:
    here = Diagnosis(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        own = {inode_of(listening)}
        given_up = here._ask("tcp", own)
        at = next(given_up)
        given_up.close()
        assert here.listening(["udp"], own) == []
        assert here.listening(["tcp"], own) == [at]
    here.close()
