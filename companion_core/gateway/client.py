"""The client's side: one connection, its requests strictly one after the other.

A request passes the guard before a byte of its body is looked at; once it has been read in
full it belongs to the connection's exchange until its answer has ended. Nothing here awaits.
`states` lists what can follow on what.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, cast

from companion_core.decisions.guard import HEALTH_PATH, verify_request
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.gateway.clients import Client
from companion_core.gateway.context import GatewayContext
from companion_core.gateway.exchange import Exchange
from companion_core.gateway.http.head import MAX_HEAD_BYTES, UNKNOWN, RequestHead, is_hopeless
from companion_core.gateway.http.request_body import RequestBody
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import CONTINUE, relayed_head
from companion_core.gateway.states import CONNECTION_TABLE, ConnectionEvent, ConnectionState
from companion_core.gateway.unread import has_unread

__all__ = ["ClientConnection"]

# A client that sends more than this ahead of its answers is cut off. Leaving its bytes unread
# would hide its end as well.
MAX_PIPELINED_BYTES: Final = 256 * 1024
MAX_REMEMBERED_HEAD: Final = 2048
LINGER_SECONDS: Final = 1.0

_OK: Final = Reason.OK
_AT_CAPACITY: Final = Reason.AT_CAPACITY
_READING_HEAD: Final = ConnectionState.READING_HEAD
_READING_BODY: Final = ConnectionState.READING_BODY
_AWAITING_ANSWER: Final = ConnectionState.AWAITING_ANSWER
_BODY_AWAITED: Final = CONNECTION_TABLE[ConnectionEvent.BODY_AWAITED]
_BODY_READ: Final = CONNECTION_TABLE[ConnectionEvent.BODY_READ]
_HANDED_OVER: Final = CONNECTION_TABLE[ConnectionEvent.HANDED_OVER]
_ANSWERED: Final = CONNECTION_TABLE[ConnectionEvent.ANSWERED]
_ANSWERED_LAST: Final = CONNECTION_TABLE[ConnectionEvent.ANSWERED_LAST]
_REFUSED_LAST: Final = CONNECTION_TABLE[ConnectionEvent.REFUSED_LAST]
_TURNED_AWAY: Final = CONNECTION_TABLE[ConnectionEvent.TURNED_AWAY]
_LOST: Final = CONNECTION_TABLE[ConnectionEvent.LOST]


class ClientConnection(asyncio.Protocol):
    """One client: an `OpenConnection`, and the `Downstream` of its exchange.

    Attributes:
        deadline: when the gateway's sweep calls `deadline_passed`.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_client",
        "_context",
        "_exchange",
        "_head",
        "_head_began",
        "_holds",
        "_idle_seconds",
        "_keep_alive",
        "_raw_head",
        "_started",
        "_state",
        "_trusted",
        "_unread",
        "_writing_paused",
        "deadline",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._exchange = Exchange(context, self)
        self._state = _READING_HEAD
        self._buffer = b""
        self._head_began = True  # the first head's deadline counts from the connection on
        self._raw_head = b""  # the bytes that `_head` was parsed from
        self._head: RequestHead | None = None
        self._body: RequestBody | None = None
        self._holds = False  # its body counts among the held ones
        self._started = 0.0
        self._keep_alive = False  # the connection goes on after this answer
        self._unread = UNKNOWN  # bytes of the current request's body that are still to come
        self._client: Client | None = None  # whose key it showed, if it is not the owner's token
        self._trusted = False  # it has not shown the token
        self._idle_seconds = context.settings.head_seconds
        self._writing_paused = False  # the client does not read its answer
        self.deadline = 0.0

    # --- the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._started = self._context.now()
        self.deadline = self._started + self._context.settings.head_seconds
        if not self._context.connections.add(self):
            self.turn_away()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See `asyncio.Protocol`; a client that leaves frees its place and stops the backend."""
        self._context.connections.discard(self)  # first of all: whatever fails, it is gone
        self.body_sent()
        self._exchange.client_left()
        self._state = _LOST[self._state]

    def eof_received(self) -> None:
        """See `asyncio.Protocol`: a client that ends its side while it waits has left."""
        if self._state is _AWAITING_ANSWER:
            self._exchange.client_left()
            self.transport.abort()

    def waits_to_be_read(self) -> bool:
        """See `OpenConnection`."""
        connection = self.transport.get_extra_info("socket")
        return not self.transport.is_closing() and has_unread(connection.fileno())

    def turn_away(self) -> None:
        """Refuse for want of room; without lingering, or a flood would outlive its refusals."""
        if self._state is not _READING_HEAD:  # it has had its answer
            self.transport.abort()
            return
        self._head = None
        self.transport.write(self._context.refusal(Reason.CONNECTION_LIMIT, None, close=True))
        now = self._context.now()
        self._count(Reason.CONNECTION_LIMIT, now)
        self._state = _TURNED_AWAY[self._state]
        self.deadline = now + LINGER_SECONDS
        self.transport.close()

    def abort(self) -> None:
        """Close at once, without an answer."""
        self.transport.abort()

    def leave_if_revoked(self) -> None:
        """See `OpenConnection`."""
        if self._client is not None and self._client.revoked:
            self.transport.abort()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: a slow reader slows its own backend request alone."""
        self._writing_paused = True
        if self._exchange.pause() or self._state is _READING_HEAD:
            self.deadline = self._context.now() + self._context.settings.stall_seconds

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writing_paused = False
        if self._exchange.resume():
            self.deadline = self._context.now() + self._context.settings.between_bytes_seconds
        elif self._state is _READING_HEAD:
            self.deadline = self._context.now() + self._idle_seconds
            self.serve_next()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        state = self._state
        if state is _READING_BODY:
            self._read_body(data)
            self.serve_next()
        elif state is _READING_HEAD or state is _AWAITING_ANSWER:
            self._buffer = self._buffer + data if self._buffer else data
            if state is _READING_HEAD and not self._writing_paused:
                self.serve_next()
            elif len(self._buffer) > MAX_PIPELINED_BYTES:
                self.break_off(Reason.MALFORMED_REQUEST)

    def deadline_passed(self) -> None:
        """Give up on what takes too long; called by the gateway's sweep."""
        state = self._state
        if state is _READING_BODY:
            self.refuse(Reason.REQUEST_TIMEOUT)
        elif state is _READING_HEAD and self._buffer and not self._writing_paused:
            self._head = None
            self.refuse(Reason.REQUEST_TIMEOUT)
        elif state is _AWAITING_ANSWER and not self._writing_paused:
            self._unread = UNKNOWN  # a connection that is still being made must not be used
            self._exchange.deadline_passed()
        else:
            self.transport.abort()

    # --- the request -----------------------------------------------------------------------

    def serve_next(self) -> None:
        """Serve the requests in the buffer, until it is empty or one of them has to wait."""
        while self._buffer and self._state is _READING_HEAD and not self._writing_paused:
            buffer = self._buffer
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._wait_for_head(buffer)
                return
            self._started = now = self._context.now()
            self._buffer = buffer[end + 4 :]
            raw, head = buffer[:end], self._head
            if head is None or raw != self._raw_head:  # a client that repeats itself is common
                head = self._read_head(raw)
                if head is None:
                    return
            self._keep_alive = head.keep_alive
            self._unread = head.body_bytes
            self._guard(head, now)

    def _read_head(self, raw: bytes) -> RequestHead | None:
        """Parse a head and remember it; None when it was refused."""
        parsed = self._context.parse_head(raw)
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
            self._started = self._context.now()
            self.deadline = self._started + self._context.settings.head_seconds

    def _guard(self, head: RequestHead, now: float) -> None:
        context = self._context
        policy, budgets, client = context.policy, context.budgets, None
        if context.clients and (client := context.clients.identify(head.token)) is not None:
            policy, budgets = client.policy(policy, head.token), client.budgets
            client.last_used = now
        self._client = client
        verdict = verify_request(
            head.method, head.path, head.headers, head.token, policy, budgets, now
        )
        if not verdict.ok:
            self.refuse(verdict.reason)
            return
        if not self._trusted:
            self._trusted = True
            self._idle_seconds = context.settings.idle_seconds
            context.connections.trust(self)
        length, buffer = head.content_length, self._buffer
        if head.objection is not None:
            self.refuse(head.objection)
        elif client is not None and not client.may_ask(context.settings.model_id):
            self.refuse(Reason.MODEL_NOT_SERVED)
        elif head.method == "GET":
            self._answer_get(head, now)
        elif length is None:
            self._await_body(head, now)
        elif length > context.settings.max_body_bytes:
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
            self._answer_models(head.path, now)

    def _answer_models(self, path: str, now: float) -> None:
        verdict = self._context.gate_arrival()
        if verdict is not None and verdict.reason is _AT_CAPACITY:
            verdict = self._context.gate(OK)  # a list takes no place, so it does not wait for one
        if verdict is None:
            self._exchange.await_observation(partial(self._answer_models, path), now)
        elif verdict.ok:
            answer = self._context.models_response(path, close=not self._keep_alive)
            if answer is None:
                self.refuse(Reason.MODEL_NOT_SERVED)
            else:
                self.transport.write(answer)
                self._answered(_OK, now)
        else:
            self.refuse(verdict.reason)

    def _await_body(self, head: RequestHead, now: float) -> None:
        settings = self._context.settings
        self._state = _BODY_AWAITED[self._state]
        self._context.bodies.begin(self)
        self._holds = True
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
        if not self._context.bodies.grow(self, len(data)):
            return
        reason = body.feed(data)
        if reason is None:
            return
        if reason is not Reason.OK:
            self.refuse(reason)
            return
        self._context.bodies.finish(self)
        self._state = _BODY_READ[self._state]
        self._body = None
        self._buffer = body.rest
        self._unread = 0
        self._exchange.begin(head.path, body.payload, self._context.now())

    # --- the answer ------------------------------------------------------------------------

    def wait_for_backend(self, deadline: float) -> None:
        """See `Downstream`."""
        self._state = _HANDED_OVER[self._state]
        self.deadline = deadline

    def count_from(self, now: float) -> None:
        """See `Downstream`."""
        self._started = now

    def answer_started(self, head: ResponseHead, body: bytes) -> None:
        """See `Downstream`."""
        if head.until_close:
            self._keep_alive = False
        self.transport.write(relayed_head(head, not self._keep_alive) + body)
        if body and not self._writing_paused:  # a stream's head may come long before its first word
            self.deadline = self._context.more_deadline

    def answer_data(self, data: bytes) -> None:
        """See `Downstream`."""
        self.transport.write(data)
        if not self._writing_paused:
            self.deadline = self._context.more_deadline

    def answer_ended(self, now: float) -> None:
        """See `Downstream`."""
        self._answered(_OK, now)
        if self._buffer:
            self.serve_next()

    def look_at_silence(self, now: float) -> None:
        """See `OpenConnection`."""
        if self._state is _AWAITING_ANSWER:
            self._exchange.look_at_silence(now)

    def beat(self, data: bytes) -> None:
        """See `StreamingClient`."""
        if not self._writing_paused:
            self.transport.write(data)

    def end_stream(self, reason: Reason, data: bytes) -> None:
        """See `StreamingClient`."""
        self.body_sent()
        self.transport.write(data)
        self._answered(reason, self._context.now())

    def break_off(self, reason: Reason) -> None:
        """See `Downstream`."""
        self._count(reason, self._context.now())
        self.transport.abort()

    def body_sent(self) -> None:
        """See `Downstream`; also where the request is refused or its client has left."""
        if self._holds:
            self._holds = False
            self._context.bodies.release(self)

    def refuse(self, reason: Reason) -> None:
        """Answer with an error; close unless the request has been read in full."""
        self.body_sent()
        if 0 < self._unread <= len(self._buffer) and not self._may_hold_back():
            self._buffer = self._buffer[self._unread :]
            self._unread = 0
        close = not self._keep_alive or self._unread != 0
        self.transport.write(self._context.refusal(reason, self._head, close=close))
        if not close:
            self._answered(reason, self._context.now())
        else:
            self._count(reason, self._context.now())
            self._linger()

    def _may_hold_back(self) -> bool:
        # With an expectation the next bytes may be the body or the next request.
        return self._head is None or self._head.expects

    def _linger(self) -> None:
        """Half close, so that the client can read the answer before the connection is gone.

        Closing with unread bytes would reset the connection and could destroy the answer.
        """
        self._state = _REFUSED_LAST[self._state]
        self._buffer = b""
        self._body = None
        self.deadline = self._context.now() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _answered(self, reason: Reason, now: float) -> None:
        path = "" if self._head is None else self._head.path  # `_count` would be one call more
        self._context.metrics.observe(path, reason, now - self._started)
        if self._client is not None:
            self._client.count(reason)
        self._unread = UNKNOWN
        if not self._keep_alive:
            # A client that does not read the rest of its answer is cut off.
            self._state = _ANSWERED_LAST[self._state]
            self.deadline = self._context.now() + self._context.settings.stall_seconds
            self.transport.close()
            return
        self._state = _ANSWERED[self._state]
        self._head_began = False
        if len(self._raw_head) > MAX_REMEMBERED_HEAD:
            self._raw_head = b""
            self._head = None
        self.deadline = now + self._idle_seconds

    def _count(self, reason: Reason, now: float) -> None:
        path = "" if self._head is None else self._head.path
        self._context.metrics.observe(path, reason, now - self._started)
        if self._client is not None:
            self._client.count(reason)
