from __future__ import annotations

import os
import socket
import sys

import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime import socket_tables
from companion_core.runtime.socket_tables import listening_sockets

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

        monkeypatch.setattr(socket_tables, "_ask_kernel", silent)
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
