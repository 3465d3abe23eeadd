"""The backend's side: one request at a time per connection, answers followed to their end.

The request is written whole and once; it is never sent a second time, because model work may
have begun. A connection is used again only after an answer that ended exactly where it said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol, cast

from companion_core.egress.backend_channel import BackendChannel
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError
from companion_core.gateway.http.chunked import (
    ChunkError,
    ChunkFramer,
)
from companion_core.gateway.http.response_head import (
    ResponseHead,
    parse_response_head,
)

__all__ = ["BackendConnection", "BackendPool", "Sink"]

MAX_RESPONSE_HEAD_BYTES: Final = 64 * 1024
CONNECT_SECONDS: Final = 5.0
# Servers close idle connections after some seconds (llama.cpp: five); staying well below
# keeps a request from being written into a connection that is just being closed.
IDLE_SECONDS: Final = 2.0
MAX_IDLE_CONNECTIONS: Final = 64
_FIRST_FINAL_STATUS: Final = 200
_SWITCHING_PROTOCOLS: Final = 101


class Sink(Protocol):
    """Who receives an answer; called back in this order, from the event loop."""

    def upstream_bound(self, connection: BackendConnection) -> bool:
        """Take a connection that was made; False when the client has gone meanwhile."""
        ...

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """Receive the head and the first bytes of the body."""
        ...

    def response_data(self, data: bytes) -> None:
        """Receive more of the body, verbatim."""
        ...

    def response_ended(self, now: float) -> None:
        """The answer is complete."""
        ...

    def response_failed(self) -> None:
        """The backend broke off, or never answered properly."""
        ...


class BackendConnection(asyncio.Protocol):
    """One connection to the backend.

    Args:
        pool: keeps it while it is idle.
        first: what it sends as soon as it is there, and to whom the answer goes; taken from
            here, where it may be put until then. Without that it is idle for as long as nobody
            needs it.
    """

    __slots__ = (
        "_buffer",
        "_ended",
        "_first",
        "_framer",
        "_head",
        "_pool",
        "_remaining",
        "_sink",
        "idle_since",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, pool: BackendPool, first: list[tuple[Sink, bytes]]) -> None:
        self._pool = pool
        self._first = first
        self._sink: Sink | None = None
        self._head: ResponseHead | None = None
        self._framer: ChunkFramer | None = None
        self._remaining = 0
        self._ended = False
        self._buffer = b""
        self.idle_since = 0.0

    def send(self, sink: Sink, request: bytes) -> None:
        """Write a whole request and hand its answer to `sink`."""
        self._sink = sink
        self._head = None
        self._ended = False
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once and forget whom the answer was for."""
        self._sink = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._pool.opened(self, self._first)
        loop = asyncio.get_running_loop()
        if self._pool.closed_for_good:  # the backend was replaced meanwhile
            loop.call_soon(self.abort)  # uvloop lets nobody abort from in here
        elif not self._first:
            self._pool.unused = self
        elif self._first[0][0].upstream_bound(self):
            self.send(*self._first.pop())
        else:
            self._first.clear()
            loop.call_soon(self._pool.keep, self, self._pool.now())

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._pool.closed(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        head = self._head
        if head is not None and exc is None and head.content_length is None and not head.chunked:
            sink.response_ended(self._pool.now())
        else:
            sink.response_failed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        sink = self._sink
        if sink is None:
            self._pool.closed(self)  # nobody asked; no request may follow on it
            self.abort()
        elif self._head is None:
            self._read_head(sink, self._buffer + data if self._buffer else data)
        else:
            taken = self._follow(data)
            if taken == len(data):
                sink.response_data(data)
            elif taken >= 0:
                sink.response_data(data[:taken])
            if self._ended:
                self._finish(surplus=taken < len(data))

    def _read_head(self, sink: Sink, buffer: bytes) -> None:
        status, head, end = 0, None, 0
        while status < _FIRST_FINAL_STATUS:  # interim answers come first (RFC 9110 section 15.2)
            start, end = end, buffer.find(b"\r\n\r\n", end)
            if end < 0 and len(buffer) - start <= MAX_RESPONSE_HEAD_BYTES:
                self._buffer = buffer[start:]
                return
            head = parse_response_head(buffer[start:end]) if end >= 0 else None
            if head is None or head.status == _SWITCHING_PROTOCOLS:
                self._fail()
                return
            status = head.status
            end += 4
        if head is None:
            return
        self._head = head
        self._buffer = b""
        body, length = buffer[end:], head.content_length
        if length == len(body):  # as short answers come
            sink.response_started(head, body)
            self._finish(surplus=False)
            return
        self._framer = ChunkFramer() if head.chunked else None
        self._remaining = length or 0
        self._ended = length == 0
        taken = self._follow(body)
        if taken >= 0:
            sink.response_started(head, body if taken == len(body) else body[:taken])
        if self._ended:
            self._finish(surplus=taken < len(body))

    def _follow(self, data: bytes) -> int:
        """Return how many bytes of `data` belong to this answer; -1 when it is malformed."""
        framer = self._framer
        if framer is not None:
            try:
                taken = framer.feed(data)
            except ChunkError:
                self._fail()
                return -1
            self._ended = framer.done
            return taken
        if self._head is None or self._head.content_length is None:
            return len(data)
        taken = min(self._remaining, len(data))
        self._remaining -= taken
        self._ended = self._remaining == 0
        return taken

    def _finish(self, *, surplus: bool) -> None:
        sink, head, self._sink = self._sink, self._head, None
        if sink is None or head is None:
            return
        now = self._pool.now()
        if head.reusable and not surplus:
            self._pool.keep(self, now)
        else:
            self.abort()
        sink.response_ended(now)

    def _fail(self) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.response_failed()


class BackendPool:
    """Connections to one listener; made when needed, kept for `IDLE_SECONDS`.

    Attributes:
        closed_for_good: no connection is wanted any more.
        unused: a connection that was made ahead.
    """

    __slots__ = (
        "_awaited",
        "_channel",
        "_connecting",
        "_egress",
        "_idle",
        "_open",
        "closed_for_good",
        "now",
        "unused",
    )

    def __init__(
        self,
        channel: BackendChannel,
        egress: Egress,
        clock: Callable[[], float],
    ) -> None:
        self.now = clock
        self._channel = channel
        self._egress = egress
        self._idle: list[BackendConnection] = []
        self._open: set[BackendConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._awaited: list[tuple[Sink, bytes]] | None = None  # of one that is being made ahead
        self.unused: BackendConnection | None = None
        self.closed_for_good = False

    @property
    def holds_nothing(self) -> bool:
        """Whether there is no connection, and none is being made."""
        return not (self._open or self._connecting)

    def take_idle(self, now: float) -> BackendConnection | None:
        """Return a connection that has not been idle for too long; None where there is none."""
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    def open_and_send(self, sink: Sink, request: bytes) -> None:
        """Send a whole request on a connection of its own; `sink` learns what becomes of it."""
        connection, self.unused = self.unused, None
        if connection is None and self._awaited is not None:
            self._awaited.append((sink, request))
            self._awaited = None
        elif connection is None:
            self._start_connecting([(sink, request)])
        elif sink.upstream_bound(connection):
            connection.send(sink, request)
        else:
            self.keep(connection, self.now())

    def open_ahead(self) -> None:
        """Make a connection that waits for the next request, however long that takes."""
        self._awaited = []
        self._start_connecting(self._awaited)

    def _start_connecting(self, first: list[tuple[Sink, bytes]]) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(first))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, first: list[tuple[Sink, bytes]]) -> None:
        # What comes first is sent by the connection itself, as soon as it is there.
        with contextlib.suppress(OSError, CompanionError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._egress.connect_backend(
                    lambda: BackendConnection(self, first), self._channel
                )
        if first is self._awaited:
            self._awaited = None
        for sink, _ in first:  # it was not sent
            sink.response_failed()

    def keep(self, connection: BackendConnection, now: float) -> None:
        """Keep an idle connection for the next request."""
        if self.closed_for_good or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        connection.idle_since = now
        self._idle.append(connection)

    def opened(self, connection: BackendConnection, first: list[tuple[Sink, bytes]]) -> None:
        """Note a connection; from now on nothing is put into `first` for it."""
        self._open.add(connection)
        if first is self._awaited:
            self._awaited = None

    def closed(self, connection: BackendConnection) -> None:
        """Forget a connection; harmless when it is forgotten already."""
        self._open.discard(connection)
        if connection is self.unused:
            self.unused = None
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float) -> None:
        """Close what has been idle for too long."""
        horizon = now - IDLE_SECONDS
        for connection in [idle for idle in self._idle if idle.idle_since <= horizon]:
            connection.abort()

    def close(self) -> None:
        """Close every connection; whoever waits for an answer learns that it failed."""
        self.closed_for_good = True
        for connection in list(self._open):
            connection.transport.abort()
