"""Which program answers where a runtime listens; this process stands for the runtime."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil  # noqa: F401 - imported before the platform's name is changed, on which it depends
import pytest

from companion_core.egress.interface import ProcessUnreadable
from companion_core.egress.live import LiveEgress
from companion_core.egress.unix_socket import ForeignPeer
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.runtime.inspect import backend_peer, readback
from companion_core.runtime.inspect.backend_peer import BackendPeer

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]

EGRESS = LiveEgress()
SYSTEMS = pytest.mark.parametrize("system", [sys.platform, "darwin"])
UNIX = UnixChannel(path="s")


class Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport


class Runtime:
    """A runtime whose tree is made up, and what was told of foreign listeners."""

    def __init__(self, *tree: int, **options: float) -> None:
        self.pids: Any = tree
        self.looks = 0
        self.told: list[bool] = []
        identity = EGRESS.identify(os.getppid())
        self.process = SimpleNamespace(tree=self.tree, identity=identity, exited=asyncio.Event())
        self.peer = BackendPeer(self.process, EGRESS, self.told.append, **options)

    def tree(self) -> tuple[int, ...]:
        self.looks += 1
        if isinstance(self.pids, Exception):
            raise self.pids
        return self.pids

    def reached(self, channel: UnixChannel | TcpChannel) -> bool:
        """Whether a connection was given out."""
        made: list[Connection] = []

        async def life() -> None:
            proved = self.peer.proved(channel)
            with contextlib.suppress(OSError):
                made.append(await EGRESS.connect_backend(Connection, proved))
                made[0].transport.abort()
                await asyncio.sleep(0)

        asyncio.run(life())
        return bool(made)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()
        yield listener


def port_of(listener: socket.socket) -> TcpChannel:
    return TcpChannel(host="127.0.0.1", port=listener.getsockname()[1])


@pytest.mark.usefixtures("own")
@SYSTEMS
def test_a_peer_in_the_tree_is_reached_and_the_tree_is_read_once(monkeypatch, system) -> None:
    ask = backend_peer.peer_of
    monkeypatch.setattr(backend_peer, "peer_of", lambda client: _on("linux", ask, client))
    monkeypatch.setattr(sys, "platform", system)
    runtime = Runtime(os.getpid())
    assert all(runtime.reached(UNIX) for _ in range(3))
    assert runtime.looks == 1
    assert runtime.told == []


@pytest.mark.usefixtures("own")
def test_the_runtime_itself_is_of_its_tree_without_a_look() -> None:
    runtime = Runtime()
    runtime.process.identity = EGRESS.identify(os.getpid())
    assert runtime.reached(UNIX)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert runtime.reached(port_of(listener))
    assert runtime.looks == 0
    assert runtime.told == []


def _on(system: str, call: Any, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", system)
        return call(*arguments)


@pytest.mark.usefixtures("own")
def test_a_peer_outside_the_tree_is_told_at_once() -> None:
    runtime = Runtime(1)
    assert not runtime.reached(UNIX)
    assert runtime.told == [False]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("pid", "perhaps"), [(0, False), (2**22 + 1, True)])
def test_an_unseen_or_ended_peer_is_not_in_the_tree(monkeypatch, pid, perhaps) -> None:
    monkeypatch.setattr(backend_peer, "peer_of", lambda _client: (pid, 0))
    runtime = Runtime(os.getpid(), pid)
    assert not runtime.reached(UNIX)
    assert runtime.told == [perhaps]


def test_a_link_is_told_at_once(own, tmp_path) -> None:
    (tmp_path / "s").rename(tmp_path / "aside")
    (tmp_path / "s").symlink_to("aside")
    runtime = Runtime(os.getpid())
    assert not runtime.reached(UNIX)
    assert runtime.told == [False]
    own.settimeout(0)
    with pytest.raises(BlockingIOError):
        own.accept()


@pytest.mark.usefixtures("own")
def test_the_runtimes_own_end_is_not_told_as_a_foreign_listener() -> None:
    for ended in ("told", "not yet"):
        runtime = Runtime(1)
        if ended == "told":
            runtime.process.exited.set()
        else:
            runtime.process.identity = SimpleNamespace(pid=os.getppid(), start_time=-1)
        assert not runtime.reached(UNIX)
        assert runtime.told == []


def test_what_the_system_does_not_tell_is_neither_used_nor_told(own) -> None:
    runtime = Runtime()
    runtime.pids = ProcessUnreadable()
    assert not runtime.reached(UNIX)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not runtime.reached(port_of(listener))
    assert runtime.told == []
    own.accept()[0].close()


@SYSTEMS
def test_a_port_is_reached_while_the_tree_listens_there(monkeypatch, system) -> None:
    monkeypatch.setattr(sys, "platform", system)
    runtime = Runtime(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert all(runtime.reached(port_of(listener)) for _ in range(3))
    assert runtime.looks == 1
    assert not runtime.reached(port_of_closed())
    assert runtime.told == []


def port_of_closed() -> TcpChannel:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return port_of(listener)


@SYSTEMS
def test_a_port_that_nobody_of_the_tree_has_is_not_even_connected_to(monkeypatch, system) -> None:
    monkeypatch.setattr(sys, "platform", system)
    runtime = Runtime(1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not runtime.reached(port_of(listener))
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert runtime.told == [True]


def test_a_port_that_was_opened_anew_is_connected_to_once_more() -> None:
    """The connection that is used was made while the new listener was there before and after."""
    runtime = Runtime(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as first:
        channel = port_of(first)
        assert runtime.reached(channel)
    with socket.create_server(("127.0.0.1", channel.port)) as again:
        assert runtime.reached(channel)
        again.settimeout(0)
        for _ in range(2):
            again.accept()[0].close()
    assert runtime.told == []


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_getfd(2)")
def test_a_listener_that_cannot_be_asked_itself_is_looked_up(monkeypatch) -> None:
    monkeypatch.setattr(readback, "listening_among", lambda _holder, held: (set(), set(held)))
    runtime = Runtime(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert runtime.reached(port_of(listener))
        held = runtime.peer._listener
        own = readback.Listener("tcp", *listener.getsockname())
        assert readback.still_listens(held, own)
    assert not readback.still_listens(held, own)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_getfd(2)")
@pytest.mark.parametrize("asked", ["the socket", "the tables"])
def test_a_lack_of_descriptors_says_nothing_of_who_listens(monkeypatch, asked) -> None:
    """A companion at its limit refuses the request; it does not end a good runtime."""

    def without_means(*_args: object, **_options: object) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    runtime = Runtime(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert runtime.reached(port_of(listener))
        with monkeypatch.context() as patch:
            if asked == "the socket":
                patch.setattr(os, "pidfd_open", without_means)
            else:
                patch.setattr(readback, "listening_among", lambda _pid, held: (set(), set(held)))
                patch.setattr(readback, "listening_sockets", without_means)
            for _ in range(2):
                assert not runtime.reached(port_of(listener))
            runtime.peer._listener = None
            assert not runtime.reached(port_of(listener))
        assert runtime.told == []
        assert runtime.reached(port_of(listener))


def test_after_a_long_look_the_next_one_is_made_in_a_thread() -> None:
    runtime = Runtime(os.getpid(), long_look=0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert runtime.reached(port_of(listener))
        assert runtime.reached(port_of(listener))
    assert runtime.peer._takes_long is True


def test_a_connection_that_fails_to_be_proved_is_closed(own, monkeypatch) -> None:
    def fails(_client: object) -> None:
        raise OSError

    monkeypatch.setattr(backend_peer, "peer_of", fails)
    assert not Runtime(os.getpid()).reached(UNIX)
    with own.accept()[0] as connection:
        assert connection.recv(1) == b""


def test_it_is_refused_as_any_listener_that_is_not_there() -> None:
    assert issubclass(ForeignPeer, ConnectionRefusedError)
