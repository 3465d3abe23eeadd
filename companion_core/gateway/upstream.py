"""The backend's side: one request at a time per connection, answers followed to their end.

The request is written whole and once; it is never sent a second time, because model work may
have begun. A connection is used again only after an answer that ended exactly where it said.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, cast

from companion_core.backend_channel import BackendChannel
from companion_core.egress import Egress
from companion_core.errors import CompanionError
from companion_core.gateway.chunked import ChunkError, ChunkFramer

__all__ = ["BackendConnection", "BackendPool", "ResponseHead", "Sink", "parse_response_head"]

MAX_RESPONSE_HEAD_BYTES: Final = 64 * 1024
CONNECT_SECONDS: Final = 5.0
# Servers close idle connections after some seconds (llama.cpp: five); staying well below
# keeps a request from being written into a connection that is just being closed.
IDLE_SECONDS: Final = 2.0
MAX_IDLE_CONNECTIONS: Final = 64

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?", re.ASCII)
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)
_MAX_LENGTH_DIGITS: Final = 15
_NO_BODY: Final = frozenset({204, 304})


class ResponseHead(NamedTuple):
    """What is kept of a backend's answer.

    Attributes:
        content_length: in bytes; None when the answer ends otherwise.
        chunked: it ends with its last chunk; with neither, it ends with the connection.
        reusable: the backend keeps the connection open.
    """

    status: int
    content_type: str | None
    content_length: int | None
    chunked: bool
    reusable: bool


def parse_response_head(raw: bytes) -> ResponseHead | None:
    """Parse the head of a backend's answer; None when it is malformed (RFC 9112 section 4)."""
    lines = raw.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or "\n" in line or "\r" in line:
            return None
        if name in {"content-length", "transfer-encoding", "content-type", "content-encoding"}:
            if name in fields:
                return None
            fields[name] = value.strip(" \t")
        elif name == "connection":
            fields[name] = fields.get(name, "") + "," + value.lower()
    if "content-encoding" in fields:
        return None  # none was asked for
    content_type = fields.get("content-type")
    if content_type is not None and _CONTENT_TYPE.fullmatch(content_type) is None:
        return None
    coding, stated = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None and (stated is not None or coding.lower() != "chunked"):
        return None
    if stated is not None and (
        not (stated.isascii() and stated.isdigit()) or len(stated) > _MAX_LENGTH_DIGITS
    ):
        return None
    status = int(match[1])
    length = 0 if status in _NO_BODY else None if stated is None else int(stated)
    reusable = (
        raw.startswith(b"HTTP/1.1")
        and "close" not in fields.get("connection", "")
        and (length is not None or coding is not None)
    )
    return ResponseHead(
        status, content_type, length, coding is not None and length is None, reusable
    )


class Sink(Protocol):
    """Who receives an answer; called back in this order, from the event loop."""

    def upstream_bound(self, connection: BackendConnection) -> bool:
        """Take the connection; False when the client has gone meanwhile."""
        ...

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """Receive the head and the first bytes of the body."""
        ...

    def response_data(self, data: bytes) -> None:
        """Receive more of the body, verbatim."""
        ...

    def response_ended(self) -> None:
        """The answer is complete."""
        ...

    def response_failed(self) -> None:
        """The backend broke off, or never answered properly."""
        ...


class BackendConnection(asyncio.Protocol):
    """One connection to the backend."""

    __slots__ = (
        "_buffer",
        "_framer",
        "_head",
        "_pool",
        "_remaining",
        "_sink",
        "idle_since",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._sink: Sink | None = None
        self._head: ResponseHead | None = None
        self._framer: ChunkFramer | None = None
        self._remaining = 0
        self._buffer = b""
        self.idle_since = 0.0

    def send(self, sink: Sink, request: bytes) -> None:
        """Write a whole request and hand its answer to `sink`."""
        self._sink = sink
        self._head = None
        self._buffer = b""
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once and forget whom the answer was for."""
        self._sink = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._pool.closed(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        head = self._head
        if head is not None and exc is None and head.content_length is None and not head.chunked:
            sink.response_ended()
        else:
            sink.response_failed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._sink is None:
            self.abort()  # nobody asked
        elif self._head is None:
            self._read_head(self._buffer + data)
        else:
            body = self._follow(data)
            if body is not None:
                self._sink.response_data(body)
                self._settle(surplus=len(body) < len(data))

    def _read_head(self, buffer: bytes) -> None:
        end = buffer.find(b"\r\n\r\n")
        if end < 0 and len(buffer) <= MAX_RESPONSE_HEAD_BYTES:
            self._buffer = buffer
            return
        head = parse_response_head(buffer[:end]) if end >= 0 else None
        if head is None or self._sink is None:
            self._fail()
            return
        rest = buffer[end + 4 :]
        if head.status < 200:  # noqa: PLR2004 - an interim answer (RFC 9110 section 15.2)
            self._buffer = b""
            self._read_head(rest)
            return
        self._head = head
        self._framer = ChunkFramer() if head.chunked else None
        self._remaining = head.content_length or 0
        body = self._follow(rest) if rest else b""
        if body is not None:
            self._sink.response_started(head, body)
            self._settle(surplus=len(body) < len(rest))

    def _follow(self, data: bytes) -> bytes | None:
        """Return the part of `data` that belongs to this answer; None when it is malformed."""
        framer = self._framer
        if framer is not None:
            try:
                taken = framer.feed(data)
            except ChunkError:
                self._fail()
                return None
            return data if taken == len(data) else data[:taken]
        if self._head is None or self._head.content_length is None:
            return data
        taken = min(self._remaining, len(data))
        self._remaining -= taken
        return data if taken == len(data) else data[:taken]

    def _settle(self, *, surplus: bool) -> None:
        """Finish the exchange when the answer has ended."""
        framer, head = self._framer, self._head
        if head is None or self._sink is None:
            return
        if framer is not None:
            ended = framer.done
        else:
            ended = head.content_length is not None and self._remaining == 0
        if not ended:
            return
        sink, self._sink = self._sink, None
        if head.reusable and not surplus:
            self._pool.keep(self)
        else:
            self.abort()
        sink.response_ended()

    def _fail(self) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.response_failed()


class BackendPool:
    """Connections to one backend; made when needed, kept for a moment."""

    __slots__ = ("_channel", "_clock", "_closed", "_connecting", "_egress", "_idle", "_open")

    def __init__(self, channel: BackendChannel, egress: Egress, clock: Callable[[], float]) -> None:
        self._channel = channel
        self._egress = egress
        self._clock = clock
        self._idle: list[BackendConnection] = []
        self._open: set[BackendConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, sink: Sink, request: bytes, *, fresh: bool = False) -> None:
        """Send a whole request; `sink` learns what becomes of it.

        Args:
            sink: receives the connection, then the answer.
            request: its head and body.
            fresh: on a connection of its own, which proves that the backend still accepts.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if self._clock() - connection.idle_since < IDLE_SECONDS:
                self._hand_over(connection, sink, request)
                return
            connection.abort()
        task = asyncio.get_running_loop().create_task(self._connect(sink, request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sink: Sink, request: bytes) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._egress.connect_backend(
                    lambda: BackendConnection(self), self._channel
                )
        except (OSError, CompanionError):
            sink.response_failed()
            return
        self._hand_over(connection, sink, request)

    def _hand_over(self, connection: BackendConnection, sink: Sink, request: bytes) -> None:
        if sink.upstream_bound(connection):
            connection.send(sink, request)
        else:
            self.keep(connection)

    def keep(self, connection: BackendConnection) -> None:
        """Keep an idle connection for the next request."""
        if self._closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        connection.idle_since = self._clock()
        self._idle.append(connection)

    def opened(self, connection: BackendConnection) -> None:
        """Note a connection."""
        self._open.add(connection)

    def closed(self, connection: BackendConnection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float) -> None:
        """Close what has been idle for too long."""
        horizon = now - IDLE_SECONDS
        for connection in [idle for idle in self._idle if idle.idle_since <= horizon]:
            connection.abort()

    def retire(self) -> None:
        """Keep no connection any more; answers in progress go on."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()

    def close(self) -> None:
        """Close every connection; whoever waits for an answer learns that it failed."""
        self.retire()
        for connection in list(self._open):
            connection.transport.abort()
