"""How the gateway reaches a backend: a channel of the plan, or a broker that hands out sockets.

Each connection to a channel of a plan is proved before a byte is sent on it: another program may
have taken the runtime's place there.
A broker stands in the network namespace of a runtime that has neither Unix socket nor key
(I-07). Whoever holds the line to it reaches the runtime; nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from companion_core.providers import TcpChannel, UnixChannel

if TYPE_CHECKING:  # a command that only asks the running companion does not load it
    import asyncio

__all__ = [
    "BackendChannel",
    "BrokeredChannel",
    "ProvedTcpChannel",
    "ProvedUnixChannel",
    "connection_of",
]

_ASK: Final = b"c"

Connect = Callable[[], Awaitable[socket.socket]]
# Makes a connection and returns it when the runtime's own tree is at its other end; else it raises
# `ForeignPeer`, or another `OSError` where nobody is.
Prove = Callable[[Connect], Awaitable[socket.socket]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedUnixChannel(UnixChannel):
    """A runtime's own Unix socket, and what proves who listens on it."""

    prove: Prove = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedTcpChannel(TcpChannel):
    """A runtime's own port, and what proves who listens on it."""

    prove: Prove = field(repr=False, compare=False)


async def connection_of(channel: UnixChannel | TcpChannel, connect: Connect) -> socket.socket:
    """Return what `connect` connects to a channel, proved where the channel says how."""
    if isinstance(channel, ProvedUnixChannel | ProvedTcpChannel):
        return await channel.prove(connect)
    return await connect()


class BrokeredChannel:
    """A loopback listener in another network namespace; for one event loop.

    Only the runtime's own tree is in that namespace, so nobody else can be connected to.

    Args:
        line: this side of a pair of sequenced-packet sockets; taken over.
        listener: where the runtime listens inside.
    """

    def __init__(self, line: socket.socket, listener: TcpChannel) -> None:
        import asyncio  # noqa: PLC0415 - loaded on first use

        self.listener = listener
        self._line = line
        self._line.settimeout(0)
        self._turn = asyncio.Lock()

    async def connect(self) -> socket.socket:
        """Return a connected socket that does not block.

        Raises:
            OSError: the runtime does not accept, or the broker is gone.
        """
        import asyncio  # noqa: PLC0415 - as above

        taking = asyncio.ensure_future(self._take())
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The answer to what was asked still comes, and belongs to nobody.
            taking.add_done_callback(_close_unwanted)
            raise

    def close(self) -> None:
        """Let go of the broker."""
        self._line.close()

    async def _take(self) -> socket.socket:
        import asyncio  # noqa: PLC0415 - as above

        async with self._turn:
            if self._line.fileno() < 0:
                raise ConnectionRefusedError
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(self._line, _ASK)
            descriptor = await self._receive(loop)
        if descriptor is None:
            raise ConnectionRefusedError
        return self._checked(descriptor)

    async def _receive(self, loop: asyncio.AbstractEventLoop) -> int | None:
        """Return the descriptor that the broker sends; None when it sends none."""
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._line, _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._line)
        if sys.platform == "win32":
            return None  # no socket can be handed over there
        _, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
        return descriptors[0] if descriptors else None

    def _checked(self, descriptor: int) -> socket.socket:
        """Take only what was asked for: a stream that leads to the listener."""
        connection = socket.socket(fileno=descriptor)
        expected = (self.listener.host, self.listener.port)
        with contextlib.suppress(OSError):
            kind = (connection.family, connection.type, connection.getpeername())
            if kind == (socket.AF_INET, socket.SOCK_STREAM, expected):
                connection.settimeout(0)
                return connection
        connection.close()
        raise ConnectionRefusedError


BackendChannel = UnixChannel | TcpChannel | BrokeredChannel


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_unwanted(taking: asyncio.Task[socket.socket]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()
