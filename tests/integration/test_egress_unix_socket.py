"""A Unix socket of the system: connected to under its own name, and asked who listens on it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion_core.egress.unix_socket import (
    ForeignPeer,
    address_of,
    listener_has_ended,
    make_private,
    peer_of,
)

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]

SYSTEMS = pytest.mark.parametrize("system", [sys.platform, "darwin"])
# Listens, hands the listener on to a child, and ends.
DAEMON = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("s")
listener.listen()
if os.fork():
    os._exit(0)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def listener(tmp_path, monkeypatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("own")
        made.listen()
        yield made


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client, address_of(path) as address:
        client.connect(address)
        yield client


@SYSTEMS
def test_a_socket_is_connected_to_under_its_own_name_alone(monkeypatch, system) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with connected("own"):
        pass
    Path("link").symlink_to("own")
    Path("folder").mkdir()
    for path in ("link", "folder"):
        with pytest.raises(ForeignPeer), address_of(path):
            pass
    with pytest.raises(FileNotFoundError), address_of("nowhere"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors")
def test_a_socket_put_in_its_place_meanwhile_is_not_connected_to(listener) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind("other")
        other.listen()
        other.settimeout(0)
        with address_of("own") as address:
            Path("own").rename("aside")
            Path("other").rename("own")
            client.connect(address)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            other.accept()


@SYSTEMS
def test_a_socket_becomes_private_and_a_link_is_not_followed(monkeypatch, system) -> None:
    monkeypatch.setattr(sys, "platform", system)
    Path("own").chmod(0o666)
    Path("link").symlink_to("own")
    with pytest.raises(ForeignPeer):
        make_private("link")
    assert Path("own").stat().st_mode & 0o777 == 0o666
    make_private("own")
    assert Path("own").stat().st_mode & 0o777 == 0o600


def test_the_system_names_this_process_as_the_listener() -> None:
    with connected("own") as client:
        assert peer_of(client) == (os.getpid(), os.geteuid())
        assert not listener_has_ended(client)


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERPIDFD")
def test_a_listener_that_outlives_its_process_is_told(require_real) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect("own")
        try:
            os.close(probe.getsockopt(socket.SOL_SOCKET, 77))
        except OSError:
            require_real("SO_PEERPIDFD", False)  # noqa: FBT003 - as it is called
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        daemon.wait()
        with connected("s") as client:
            assert peer_of(client)[0] == daemon.pid
            assert listener_has_ended(client)
