"""The client's side: one connection, its requests strictly one after the other.

A request passes the guard before a byte of its body is looked at; once it has been read in
full it belongs to the connection's exchange until its answer has ended. Nothing here awaits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from companion_core.decisions.guard import HEALTH_PATH, verify_request
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.exchange import Exchange
from companion_core.gateway.http.head import (
    MAX_HEAD_BYTES,
    UNKNOWN,
    RequestHead,
    is_hopeless,
)
from companion_core.gateway.http.request_body import RequestBody
from companion_core.gateway.http.responses import CONTINUE

if TYPE_CHECKING:
    from companion_core.gateway.gateway import Gateway

__all__ = ["ClientConnection"]

# A client that sends more than this ahead of its answers is cut off. Its bytes could be left
# unread instead, but then nobody would notice when it leaves.
MAX_PIPELINED_BYTES: Final = 256 * 1024
MAX_REMEMBERED_HEAD: Final = 2048
LINGER_SECONDS: Final = 1.0

# What a connection is doing. Plain integers: they are compared several times per request.
_HEAD: Final = 0  # between requests, or in the middle of a head
_BODY: Final = 1
_BUSY: Final = 2  # the exchange has the request
_LINGER: Final = 3  # answered and half closed; what still arrives is thrown away
_CLOSED: Final = 4


class ClientConnection(asyncio.Protocol):
    """One client.

    Attributes:
        deadline: when the gateway's sweep calls `deadline_passed`.
        keep_alive: the connection goes on after this answer.
        writing_paused: its answer is not being read.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_exchange",
        "_gateway",
        "_head",
        "_head_began",
        "_idle_seconds",
        "_raw_head",
        "_started",
        "_state",
        "_trusted",
        "_unread",
        "deadline",
        "keep_alive",
        "transport",
        "writing_paused",
    )
    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._exchange = Exchange(gateway, self)
        self._state = _HEAD
        self._buffer = b""
        self._head_began = True  # the first head's deadline counts from the connection on
        self._raw_head = b""  # the bytes that `_head` was parsed from
        self._head: RequestHead | None = None
        self._body: RequestBody | None = None
        self._started = 0.0
        self.keep_alive = False
        self._unread = UNKNOWN  # bytes of the current request's body that are still to come
        self._trusted = False  # it has not shown the token
        self._idle_seconds = gateway.settings.head_seconds
        self.writing_paused = False
        self.deadline = 0.0

    # --- the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._started = self._gateway.now()
        self.deadline = self._started + self._gateway.settings.head_seconds
        if not self._gateway.connection_opened(self):
            self.turn_away()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See `asyncio.Protocol`; a client that leaves frees its place and stops the backend."""
        self._state = _CLOSED
        self._gateway.connections.discard(self)
        self._exchange.client_left()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`: who stops sending while it waits for an answer has left."""
        if self._state == _BUSY:
            self._exchange.client_left()
            self.transport.abort()

    def turn_away(self) -> None:
        """Refuse for want of room; without lingering, or a flood would outlive its refusals."""
        if self._state > _BODY:
            self.transport.abort()
            return
        self._head = None
        self.transport.write(self._gateway.refusal(Reason.CONNECTION_LIMIT, None, close=True))
        self._count(Reason.CONNECTION_LIMIT, self._gateway.now())
        self._close()
        self.deadline = self._gateway.now() + LINGER_SECONDS

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: a slow reader slows its backend, and nobody else."""
        self.writing_paused = True
        if self._exchange.pause() or self._state == _HEAD:
            self.deadline = self._gateway.now() + self._gateway.settings.stall_seconds

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.writing_paused = False
        if self._exchange.resume():
            self.deadline = self._gateway.now() + self._gateway.settings.between_bytes_seconds
        elif self._state == _HEAD:
            self.deadline = self._gateway.now() + self._idle_seconds
            self.serve_buffer()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        state = self._state
        if state == _BODY:
            self._read_body(data)
            self.serve_buffer()
        elif state <= _BUSY:
            self._buffer = self._buffer + data if self._buffer else data
            if state == _HEAD and not self.writing_paused:
                self.serve_buffer()
            elif len(self._buffer) > MAX_PIPELINED_BYTES:
                self.break_off(Reason.MALFORMED_REQUEST)

    def deadline_passed(self) -> None:
        """Give up on whatever takes too long; called by the gateway's sweep."""
        state = self._state
        if state == _BODY:
            self.refuse(Reason.REQUEST_TIMEOUT)
        elif state == _HEAD and self._buffer and not self.writing_paused:
            self._head = None
            self.refuse(Reason.REQUEST_TIMEOUT)
        elif state == _BUSY and not self.writing_paused:
            self._unread = UNKNOWN  # a connection that is still being made must not be used
            self._exchange.deadline_passed()
        else:
            self.transport.abort()

    # --- the request -----------------------------------------------------------------------

    def serve_buffer(self) -> None:
        """Serve what the buffer holds, until it is empty or something has to be waited for."""
        while self._buffer and self._state == _HEAD and not self.writing_paused:
            buffer = self._buffer
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._wait_for_head(buffer)
                return
            self._started = now = self._gateway.now()
            self._buffer = buffer[end + 4 :]
            raw, head = buffer[:end], self._head
            if head is None or raw != self._raw_head:  # a client that repeats itself is common
                head = self._read_head(raw)
                if head is None:
                    return
            self.keep_alive = head.keep_alive
            self._unread = head.body_bytes
            self._guard(head, now)

    def _read_head(self, raw: bytes) -> RequestHead | None:
        """Parse a head and remember it; None when it was refused."""
        parsed = self._gateway.parse_head(raw)
        if isinstance(parsed, Verdict):
            self._head = None
            self.refuse(parsed.reason)
            return None
        self._head = parsed
        self._raw_head = raw
        return parsed

    def _wait_for_head(self, partial: bytes) -> None:
        if len(partial) > MAX_HEAD_BYTES:
            self._head = None
            self.refuse(Reason.HEAD_TOO_LARGE)
        elif is_hopeless(partial):
            self._head = None
            self.refuse(Reason.MALFORMED_REQUEST)
        elif not self._head_began:
            self._head_began = True
            self._started = self._gateway.now()
            self.deadline = self._started + self._gateway.settings.head_seconds

    def _guard(self, head: RequestHead, now: float) -> None:
        gateway = self._gateway
        verdict = verify_request(
            head.method, head.path, head.headers, head.token, gateway.policy, gateway.budgets, now
        )
        if not verdict.ok:
            self.refuse(verdict.reason)
            return
        if not self._trusted:
            self._trusted = True
            self._idle_seconds = gateway.settings.idle_seconds
            gateway.connections.trust(self)
        length, buffer = head.content_length, self._buffer
        if head.objection is not None:
            self.refuse(head.objection)
        elif head.method == "GET":
            self._answer_get(head, now)
        elif length is None:
            self._await_body(head, now)
        elif length > gateway.settings.max_body_bytes:
            self.refuse(Reason.BODY_TOO_LARGE)
        elif len(buffer) < length:
            self._await_body(head, now)
        else:
            self._buffer = buffer[length:]
            self._unread = 0
            self._exchange.begin(head.path, buffer[:length], now)

    def _answer_get(self, head: RequestHead, now: float) -> None:
        if head.path == HEALTH_PATH:
            self._exchange.begin_health_check(now, self._raw_head)
        else:
            self.transport.write(self._gateway.models_response(close=not head.keep_alive))
            self._answered(Reason.OK, now)

    def _await_body(self, head: RequestHead, now: float) -> None:
        settings = self._gateway.settings
        self._state = _BODY
        self._body = RequestBody(head.content_length, settings.max_body_bytes)
        self.deadline = now + settings.body_seconds
        data, self._buffer = self._buffer, b""
        if head.expects and not data:
            self.transport.write(CONTINUE)
        self._read_body(data)

    def _read_body(self, data: bytes) -> None:
        head, body = self._head, self._body
        if head is None or body is None:
            return
        reason = body.feed(data)
        if reason is None:
            return
        if reason is not Reason.OK:
            self.refuse(reason)
            return
        self._state = _HEAD
        self._body = None
        self._buffer = body.rest
        self._unread = 0
        self._exchange.begin(head.path, body.payload, self._gateway.now())

    # --- the answer ------------------------------------------------------------------------

    def wait_for_backend(self, deadline: float) -> None:
        """The exchange has the request; it says when the answer begins and ends."""
        self._state = _BUSY
        self.deadline = deadline

    def count_from(self, now: float) -> None:
        """Let the request have begun now, for the metrics."""
        self._started = now

    def answer_ended(self, now: float) -> None:
        """The backend's answer has been passed on in full."""
        self._answered(Reason.OK, now)
        if self._buffer:
            self.serve_buffer()

    def break_off(self, reason: Reason) -> None:
        """End the connection in the middle of an answer: the client sees that it is incomplete."""
        self._count(reason, self._gateway.now())
        self.transport.abort()

    def refuse(self, reason: Reason) -> None:
        """Answer with an error; close unless the request has been read in full."""
        if 0 < self._unread <= len(self._buffer) and not self._may_hold_back():
            self._buffer = self._buffer[self._unread :]
            self._unread = 0
        close = not self.keep_alive or self._unread != 0
        self.transport.write(self._gateway.refusal(reason, self._head, close=close))
        if not close:
            self._answered(reason, self._gateway.now())
        else:
            self._count(reason, self._gateway.now())
            self._linger()

    def _may_hold_back(self) -> bool:
        # With an expectation the next bytes may be the body or the next request.
        return self._head is None or self._head.expects

    def _linger(self) -> None:
        """Half close, so that the client can read the answer before the connection is gone.

        Closing with unread bytes would reset the connection and could destroy the answer.
        """
        self._state = _LINGER
        self._buffer = b""
        self._body = None
        self.deadline = self._gateway.now() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _answered(self, reason: Reason, now: float) -> None:
        self._count(reason, now)
        self._unread = UNKNOWN
        if not self.keep_alive:
            self._close()
            return
        self._state = _HEAD
        self._head_began = False
        if len(self._raw_head) > MAX_REMEMBERED_HEAD:
            self._raw_head = b""
            self._head = None
        self.deadline = now + self._idle_seconds

    def _close(self) -> None:
        """Close after what has been written; a client that does not read it is cut off."""
        self._state = _CLOSED
        self.deadline = self._gateway.now() + self._gateway.settings.stall_seconds
        self.transport.close()

    def _count(self, reason: Reason, now: float) -> None:
        path = "" if self._head is None else self._head.path
        self._gateway.metrics.observe(path, reason, now - self._started)
