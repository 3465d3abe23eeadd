"""How the gateway reaches a backend: a channel of the plan, or a broker that hands out sockets.

Each connection to a channel of a plan is proved before a byte is sent on it, because another
program may have taken the runtime's place there.
A broker runs in the network namespace of a runtime that has neither a Unix socket nor a key
(I-07). The runtime can be reached only through the socket pair that leads to its broker.
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
# Makes a connection and returns it if the runtime's own tree is at its other end; else it raises
# `ForeignPeer`, or another `OSError` if no program listens.
Prove = Callable[[Connect], Awaitable[socket.socket]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedUnixChannel(UnixChannel):
    """A runtime's own Unix socket, and the function that proves its listener."""

    prove: Prove = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedTcpChannel(TcpChannel):
    """A runtime's own port, and the function that proves its listener."""

    prove: Prove = field(repr=False, compare=False)


async def connection_of(channel: UnixChannel | TcpChannel, connect: Connect) -> socket.socket:
    """Return the connection that `connect` makes, proved if the channel has a proof."""
    if isinstance(channel, ProvedUnixChannel | ProvedTcpChannel):
        return await channel.prove(connect)
    return await connect()


class BrokeredChannel:
    """A loopback listener in another network namespace; for one event loop.

    Only the runtime's own tree is in that namespace, so no other program can answer there.

    Args:
        line: our end of a pair of sequenced-packet sockets; this object closes it.
        listener: the runtime's address inside the namespace.
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
        import asyncio  # noqa: PLC0415 - loaded on first use

        taking = asyncio.ensure_future(self._take())
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The broker's answer still comes, and no caller waits for it.
            taking.add_done_callback(_close_unwanted)
            raise

    def close(self) -> None:
        """Close the line, which ends the broker."""
        self._line.close()

    async def _take(self) -> socket.socket:
        import asyncio  # noqa: PLC0415 - loaded on first use

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
            return None  # Windows has no call that hands a socket over
        _, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
        return descriptors[0] if descriptors else None

    def _checked(self, descriptor: int) -> socket.socket:
        """Accept nothing but a stream that is connected to the listener."""
        try:
            connection = socket.socket(fileno=descriptor)
        except OSError:  # it is no socket, and was not taken
            os.close(descriptor)
            raise
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
