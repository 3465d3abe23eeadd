"""One connection to the backend: one request at a time, its answer followed to its end.

A backend may close a connection that waits, at any time, so a request can meet its end. Such a
request is sent once more, on a new connection, if all of this holds; otherwise it has failed:

* The connection had waited for it. One that was made for a request is not closed for idleness.
* No byte of an answer came.
* It is a health check, which asked twice does no more than once (RFC 9110 section 9.2.2); or
  the backend certainly did not read all of it (`unread`), so no model work has begun.
"""

from __future__ import annotations

import asyncio
import select
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from companion_core.gateway.http.chunked import (
    ChunkError,
    ChunkFramer,
)
from companion_core.gateway.http.response_head import (
    ResponseHead,
    parse_response_head,
)
from companion_core.gateway.unread import never_read

if TYPE_CHECKING:
    from companion_core.gateway.upstream import BackendPool

__all__ = ["BackendConnection", "Outgoing", "Sink"]

MAX_RESPONSE_HEAD_BYTES: Final = 64 * 1024
RESET_SECONDS: Final = 0.02  # within which a reset follows an end on TCP
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


class Outgoing(NamedTuple):
    """A whole request, and who receives its answer.

    Attributes:
        check: it is a health check: it may be asked twice, and its connection ends with it.
    """

    sink: Sink
    request: bytes
    check: bool = False


class BackendConnection(asyncio.Protocol):
    """One connection to the backend.

    Args:
        pool: keeps it while it is idle.
        first: what it sends as soon as it is there, and to whom the answer goes; taken from
            here, where it may be put until then. Without that it is idle for as long as nobody
            needs it.

    Attributes:
        kind: of the newest answer that came on it; the pool knows what follows on each kind.
        idle_since: on the pool's clock.
        idle_until: no request is sent on it from then on.
        waited: for a request; the backend may have ended it meanwhile.
    """

    __slots__ = (
        "_again",
        "_buffer",
        "_check",
        "_ended",
        "_first",
        "_framer",
        "_head",
        "_poll",
        "_pool",
        "_remaining",
        "_sink",
        "_unread",
        "idle_since",
        "idle_until",
        "kind",
        "transport",
        "waited",
    )
    transport: asyncio.Transport

    def __init__(self, pool: BackendPool, first: list[Outgoing]) -> None:
        self._pool = pool
        self._first = first
        self._sink: Sink | None = None
        self._head: ResponseHead | None = None
        self._framer: ChunkFramer | None = None
        self._remaining = 0
        self._ended = False
        self._buffer = b""
        self._poll: Any = None  # a `select.poll`, which Windows has not
        self._again = b""  # the request, for as long as it may have to be sent again
        self._check = False
        self._unread = False  # the backend certainly did not read all of it
        self.kind: tuple[int, bool] | None = None
        self.idle_since = self.idle_until = 0.0
        self.waited = False

    def send(self, sink: Sink, request: bytes, *, check: bool = False) -> None:
        """Write a whole request and hand its answer to `sink`; see `Outgoing`."""
        self._sink = sink
        self._head = None
        self._ended = False
        self._check = check
        if self.waited:
            self._again = request
        self.transport.write(request)

    def is_silent(self) -> bool:
        """Whether neither an end nor a byte has come that the event loop has not read yet."""
        return self._poll is None or not self._poll.poll(0)

    def abort(self) -> None:
        """Close at once and forget whom the answer was for."""
        self._sink = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        if sys.platform != "win32":
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._pool.opened(self, self._first)
        loop = asyncio.get_running_loop()
        if self._pool.closed_for_good:  # the backend was replaced meanwhile
            loop.call_soon(self.abort)  # uvloop lets nobody abort from in here
        elif not self._first:
            self.waited = True
            self._pool.unused = self
        elif self._first[0].sink.upstream_bound(self):
            outgoing = self._first.pop()
            self.send(outgoing.sink, outgoing.request, check=outgoing.check)
        else:
            self._first.clear()
            loop.call_soon(self._pool.keep, self, self._pool.now())

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`; True keeps the transport until a reset can have followed."""
        if self._sink is None:
            self._pool.ended_idle(self)
        elif self._again and not self._check:
            unread = never_read(self.transport, None)
            self._unread = unread is True
            if unread is None:
                asyncio.get_running_loop().call_later(RESET_SECONDS, self._look_for_reset)
                return True
        return False

    def _look_for_reset(self) -> None:
        if self._sink is not None:
            self._unread = never_read(self.transport, None) is True
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        sink, self._sink = self._sink, None
        if sink is None and exc is not None:
            self._pool.ended_idle(self)
        self._pool.closed(self)
        if sink is None:
            return
        head, again, self._again = self._head, self._again, b""
        if head is not None and exc is None and head.content_length is None and not head.chunked:
            sink.response_ended(self._pool.now())
        elif again and not self._pool.closed_for_good:
            self._pool.learn_end(self)
            if self._check or self._unread or (exc is not None and never_read(self.transport, exc)):
                self._pool.connect_and_send(Outgoing(sink, again, self._check))
            else:
                sink.response_failed()
        else:
            sink.response_failed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        sink = self._sink
        if sink is None:
            self._pool.ended_idle(self)  # nobody asked; no request may follow on it
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
        self._again = b""
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
        if head.reusable and not surplus and not self._check:
            self._pool.keep_after(self, head, now)
        else:
            self.abort()
        sink.response_ended(now)

    def _fail(self) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.response_failed()
