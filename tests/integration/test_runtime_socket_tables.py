"""What the kernel's tables say of real sockets, in this network and in another."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.inspect.socket_tables import listening_sockets

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets as Linux lists them"),
]

ALL = ("tcp", "tcp6", "udp", "udp6")


def inode_of(opened: socket.socket) -> int:
    return os.fstat(opened.fileno()).st_ino


def test_what_listens_is_told_from_what_is_connected() -> None:
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
        assert set(listening_sockets(me, ALL, own)) == {
            Listener("tcp", *listening.getsockname()),
            Listener("udp", *datagrams.getsockname()),
        }


def test_a_dual_listener_is_the_widest_address(require_real) -> None:
    require_real("sockets of IPv4 and IPv6 in one", socket.has_dualstack_ipv6())
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as wide:
        found = list(listening_sockets(os.getpid(), ALL, {inode_of(wide)}))
        assert found == [Listener("tcp", "::", wide.getsockname()[1])]


# Listens in a network of its own, and tells where.
ELSEWHERE = """
import os, socket, sys
with socket.create_server(("127.0.0.1", 0)) as here:
    print(os.fstat(here.fileno()).st_ino, here.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_another_network_has_tables_of_its_own(require_real) -> None:
    bubblewrap = shutil.which("bwrap")
    require_real("bubblewrap", bubblewrap)
    command = [bubblewrap, "--unshare-net", "--dev-bind", "/", "/", "--die-with-parent"]
    program = [sys.executable, "-IS", "-c", ELSEWHERE]
    with subprocess.Popen(
        [*command, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        inode, port = map(int, started.stdout.readline().split())
        (elsewhere,) = psutil.Process(started.pid).children(recursive=True)
        found = list(listening_sockets(elsewhere.pid, ["tcp"], {inode}))
        assert found == [Listener("tcp", "127.0.0.1", port, other_network=True)]
        assert not list(listening_sockets(os.getpid(), ["tcp"], {inode}))
        # A socket stays where it was made, wherever its process goes.
        with socket.create_server(("127.0.0.1", 0)) as here:
            ours = list(listening_sockets(elsewhere.pid, ["tcp"], {inode_of(here)}))
            assert ours == [Listener("tcp", *here.getsockname())]
        assert listeners([elsewhere.pid]) == set(found)  # as the socket itself says
        started.kill()
