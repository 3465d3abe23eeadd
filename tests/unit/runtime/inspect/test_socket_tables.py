from __future__ import annotations

import sys

import pytest

from companion_core.runtime.inspect import socket_tables
from companion_core.runtime.inspect.socket_tables import listening_sockets

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets as Linux lists them"),
]


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


ALL = ("tcp", "tcp6", "udp", "udp6")


def test_a_process_that_is_gone_is_said_so() -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        list(listening_sockets(2**22 + 1, ALL, ()))
