from __future__ import annotations

import os
import socket
import sys

import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime import readback
from companion_core.runtime.readback import descendants, environment_names, listeners

pytestmark = pytest.mark.unit
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
@pytest.mark.parametrize(
    ("address", "text"),
    [("127.0.0.1", b"0100007F"), ("0.0.0.0", b"00000000"), ("192.168.1.2", b"0201A8C0")],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="as such a machine prints it")
def test_ipv4_addresses_as_the_kernel_prints_them(address, text) -> None:
    assert readback._address(text) == address


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
    assert readback._address(text) == address


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


def test_a_process_that_is_gone_has_nothing() -> None:
    gone = 2**22 + 1
    assert listeners([gone]) == frozenset()
    assert descendants(gone) == ()
    with pytest.raises(ProcessLookupError):
        environment_names(gone)


@linux_only
def test_what_cannot_be_read_is_none(monkeypatch) -> None:
    def forbidden(*_args):
        raise PermissionError

    monkeypatch.setattr(os, "listdir", forbidden)
    assert listeners([os.getpid()]) is None
    monkeypatch.setattr(readback.Path, "read_bytes", forbidden)
    assert environment_names(os.getpid()) is None


@linux_only
def test_without_proc_the_same_is_read_through_psutil() -> None:
    me, gone = os.getpid(), 2**22 + 1
    assert readback._environment_names_elsewhere(me) == environment_names(me)
    with socket.socket() as listening, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        datagrams.bind(("127.0.0.1", 0))
        assert readback._listeners_elsewhere([me]) == listeners([me])
    assert readback._listeners_elsewhere([gone]) == frozenset()
    assert readback._descendants_elsewhere(gone) == ()
    with pytest.raises(ProcessLookupError):
        readback._environment_names_elsewhere(gone)
