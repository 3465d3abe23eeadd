"""One connection to the backend: one request at a time, its answer followed to its end.

A backend may close an idle connection at any time, so a request can meet that end. Such a
request is sent once more, on a new connection, if all of this holds; otherwise it has failed:

* It is the first copy.
* No byte of an answer came.
* The backend cannot have read all of it (`unread`), so no model work has begun; or it is a health
  check on a connection that had waited for it, since a check that is asked twice does no more than
  once (RFC 9110 section 9.2.2).

No request follows one that the backend had not read when it answered: it might take the rest of
the one for the start of the other (RFC 9112 section 9.3 has it read all of a request or close).
What it has taken from the system and then left unparsed cannot be seen from here, and nor can, on
TCP, what its system has acknowledged for it.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from typing import Final, Protocol, cast

from companion_core.gateway.http.chunked import ChunkError, ChunkFramer
from companion_core.gateway.http.response_head import ResponseHead, parse_response_head
from companion_core.gateway.interface import Outgoing, Sink
from companion_core.gateway.unread import left_unread, never_read

__all__ = ["BackendConnection", "ConnectionOwner"]

MAX_RESPONSE_HEAD_BYTES: Final = 64 * 1024
MAX_REMEMBERED_HEAD: Final = 2048
# A backend that shuts a connection down closes it at once; on a busy machine it may have to wait
# for its turn in between. It can answer no more, so only its end can still come.
CLOSE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.005
_FIRST_FINAL_STATUS: Final = 200
_SWITCHING_PROTOCOLS: Final = 101


class ConnectionOwner(Protocol):
    """The pool, as its connections use it.

    Attributes:
        now: its clock, in seconds.
        closed_for_good: no connection is wanted any more.
    """

    now: Callable[[], float]
    closed_for_good: bool

    def opened(self, connection: BackendConnection, first: list[Outgoing]) -> None:
        """Use a connection that was made, first of all for what is in `first`."""
        ...

    def keep_after(self, connection: BackendConnection, head: ResponseHead, now: float) -> None:
        """Keep a connection after an answer, or abort it."""
        ...

    def learn_end(self, connection: BackendConnection) -> None:
        """Use no connection again after such an answer as this one ended after."""
        ...

    def ended_idle(self, connection: BackendConnection) -> None:
        """Forget a connection that the backend ended, or spoke on, while it was idle."""
        ...

    def closed(self, connection: BackendConnection) -> None:
        """Forget a connection."""
        ...

    def connect_and_send(self, outgoing: Outgoing) -> None:
        """Send a request on a connection that is made now."""
        ...


class BackendConnection(asyncio.Protocol):
    """One connection to the backend.

    Args:
        pool: keeps it while it is idle.
        first: holds at most one request, which may be put here until the connection is made;
            the pool sends that first. Without one the connection stays idle until it is needed.

    Attributes:
        kind: of the newest answer on it; the pool knows what a backend does after each kind.
        idle_since: on the pool's clock.
        idle_until: no request is sent on it from then on.
        waited: it has been idle before its request; the backend may have ended it meanwhile.
    """

    __slots__ = (
        "_again",
        "_buffer",
        "_check",
        "_descriptor",
        "_ended",
        "_first",
        "_framer",
        "_head",
        "_known_head",
        "_poll",
        "_pool",
        "_raw_head",
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

    def __init__(self, pool: ConnectionOwner, first: list[Outgoing]) -> None:
        self._pool = pool
        self._first = first
        self._sink: Sink | None = None
        self._head: ResponseHead | None = None
        self._raw_head = b""  # the bytes that `_known_head` was parsed from
        self._known_head: ResponseHead | None = None
        self._framer: ChunkFramer | None = None
        self._remaining = 0
        self._ended = False
        self._buffer = b""
        self._poll: Callable[[int], object] | None = None  # Windows has no `select.poll`
        self._again = b""  # the request, for as long as it may have to be sent again
        self._check = False
        self._descriptor = -1
        self._unread = False  # the backend cannot have read all of it
        self.kind: int | None = None
        self.idle_since = self.idle_until = 0.0
        self.waited = False

    def send(
        self, sink: Sink, request: bytes, *, check: bool = False, second: bool = False
    ) -> None:
        """Write a whole request and hand its answer to `sink`; see `Outgoing`."""
        self._sink = sink
        self._head = None
        self._check = check
        if not second:
            self._again = request
        self.transport.write(request)

    def is_silent(self) -> bool:
        """Whether neither an end nor a byte has come that the event loop has not read yet."""
        return self._poll is None or not self._poll(0)

    def abort(self) -> None:
        """See `Upstream`: close at once and forget the receiver of the answer."""
        self._sink = None
        self.transport.abort()

    def pause_reading(self) -> None:
        """See `Upstream`."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """See `Upstream`."""
        self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        if sys.platform != "win32":
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            self._poll = poll.poll
        self._pool.opened(self, self._first)

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`; True keeps the transport until the backend can have closed.

        It is aborted otherwise: closing would still send what is unwritten, to a backend that
        has only ended its own side.
        """
        if self._sink is None:
            self._pool.ended_idle(self)
        elif self._again and not self._check:
            loop = asyncio.get_running_loop()
            return self._look_for_reset(loop, loop.time() + CLOSE_SECONDS)
        self.transport.abort()
        return False

    def _look_for_reset(self, loop: asyncio.AbstractEventLoop, until: float) -> bool:
        """Look again until it is known, and at most until then; return whether it is not known."""
        if self._sink is None:  # it was aborted in between
            return False
        unread = never_read(self.transport, None)
        if unread is None and loop.time() < until:
            loop.call_later(LOOK_SECONDS, self._look_for_reset, loop, until)
            return True
        self._unread = unread is True
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        sink, self._sink = self._sink, None
        if sink is None and exc is not None:
            self._pool.ended_idle(self)
        self._pool.closed(self)
        if sink is None:
            return
        head, again, self._again = self._head, self._again, b""
        if head is not None and exc is None and head.until_close:
            sink.response_ended(self._pool.now())
        elif again and not self._pool.closed_for_good:
            self._pool.learn_end(self)
            if (
                (self._check and self.waited)
                or self._unread
                or (exc is not None and never_read(self.transport, exc))
            ):
                self._pool.connect_and_send(Outgoing(sink, again, self._check, second=True))
            else:
                sink.response_failed()
        else:
            sink.response_failed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        sink = self._sink
        if sink is None:
            self._pool.ended_idle(self)  # no request was sent; none may follow on it
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
                self._finish(sink, self._head, surplus=taken < len(data))

    def _read_head(self, sink: Sink, buffer: bytes) -> None:
        self._again = b""
        end = buffer.find(b"\r\n\r\n")
        if end > 0 and buffer[:end] == self._raw_head:  # a backend that repeats itself is common
            head = self._known_head
            end += 4
        else:
            head, end = self._parse_final_head(buffer)
        if head is None:
            return
        self._head = head
        self._buffer = b""
        body, length = buffer[end:], head.content_length
        if length == len(body):  # as short answers come
            sink.response_started(head, body)
            self._finish(sink, head, surplus=False)
            return
        self._framer = ChunkFramer() if head.chunked else None
        self._remaining = length or 0
        self._ended = length == 0
        taken = self._follow(body)
        if taken >= 0:
            sink.response_started(head, body if taken == len(body) else body[:taken])
        if self._ended:
            self._finish(sink, head, surplus=taken < len(body))

    def _parse_final_head(self, buffer: bytes) -> tuple[ResponseHead | None, int]:
        """Return the head of the answer and where its body begins; None while it is incomplete.

        Interim answers come first (RFC 9110 section 15.2). A malformed head fails the request.
        """
        end = 0
        while True:
            start, end = end, buffer.find(b"\r\n\r\n", end)
            if end < 0 and len(buffer) - start <= MAX_RESPONSE_HEAD_BYTES:
                self._buffer = buffer[start:]
                return None, 0
            raw = buffer[start:end]
            head = parse_response_head(raw) if end >= 0 else None
            if head is None or head.status == _SWITCHING_PROTOCOLS:
                self._fail()
                return None, 0
            end += 4
            if head.status >= _FIRST_FINAL_STATUS:
                if len(raw) <= MAX_REMEMBERED_HEAD:
                    self._raw_head = raw
                    self._known_head = head
                return head, end

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

    def _finish(self, sink: Sink, head: ResponseHead, *, surplus: bool) -> None:
        if self._sink is None:  # the sink has aborted in between
            return
        self._sink = None
        now = self._pool.now()
        if (
            head.reusable
            and not (surplus or self._check)
            and not left_unread(self.transport, self._descriptor)
        ):
            self._pool.keep_after(self, head, now)
        else:
            self.abort()
        sink.response_ended(now)

    def _fail(self) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.response_failed()
