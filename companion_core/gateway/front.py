"""The client's side: one connection, its requests strictly one after the other.

A request passes the guard before a byte of its body is looked at; then body, lifecycle,
admission and resources (I-10); then it belongs to the backend until its answer has ended.
Nothing here awaits: the event loop and the queue call back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from companion_core.decisions.guard import HEALTH_PATH, bearer_token, verify_request
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.gateway.body import encode_body, is_json, parse_body
from companion_core.gateway.chunked import ChunkError, ChunkFramer
from companion_core.gateway.head import MAX_HEAD_BYTES, RequestHead, is_hopeless, parse_head
from companion_core.gateway.responses import CONTINUE, error_response, relayed_head
from companion_core.gateway.upstream import BackendConnection, ResponseHead

if TYPE_CHECKING:
    from companion_core.gateway.gateway import Gateway

__all__ = ["ClientConnection"]

MAX_PIPELINED_BYTES: Final = 64 * 1024
LINGER_SECONDS: Final = 1.0


# What a connection is doing. Plain integers: they are compared several times per request.
_HEAD: Final = 0  # between requests, or in the middle of a head
_BODY: Final = 1
_QUEUED: Final = 2
_UPSTREAM: Final = 3  # a place is taken, or a health check is on its way
_LINGER: Final = 4  # answered and half closed; what still arrives is thrown away
_CLOSED: Final = 5

_UNKNOWN: Final = -1


class ClientConnection(asyncio.Protocol):
    """One client; `deadline` is when the gateway's sweep calls `deadline_passed`."""

    __slots__ = (
        "_answering",
        "_body",
        "_buffer",
        "_framer",
        "_gateway",
        "_head",
        "_holds_place",
        "_keep_alive",
        "_path",
        "_reading_paused",
        "_started",
        "_state",
        "_trusted",
        "_unread",
        "_upstream",
        "_writing_paused",
        "deadline",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._state = _HEAD
        self._buffer = b""
        self._head: RequestHead | None = None
        self._framer: ChunkFramer | None = None
        self._body = b""
        self._path = ""
        self._upstream: BackendConnection | None = None
        self._started = 0.0
        self._answering = False  # the head of the backend's answer has been passed on
        self._holds_place = False
        self._keep_alive = True
        self._unread = _UNKNOWN  # bytes of the current request's body that are still to come
        self._trusted = False  # it has shown the token once, so it may idle for longer
        self._reading_paused = False
        self._writing_paused = False
        self.deadline = 0.0

    # --- the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self.deadline = self._gateway.now() + self._gateway.settings.head_seconds
        if not self._gateway.connection_opened(self):
            # No lingering here: a flood of connections must not outlive its refusals.
            self._gateway.count(self._path, Reason.CONNECTION_LIMIT)
            self.transport.write(error_response(Reason.CONNECTION_LIMIT, close=True))
            self._state = _CLOSED
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See `asyncio.Protocol`; a client that leaves frees its place and stops the backend."""
        state, self._state = self._state, _CLOSED
        self._gateway.connection_closed(self)
        if state == _QUEUED:
            self._gateway.queue.leave(self)
        elif state == _UPSTREAM:
            if self._upstream is not None:
                self._upstream.abort()
                self._upstream = None
            self._release_place()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: a slow reader slows its backend, and nobody else."""
        self._writing_paused = True
        self.deadline = self._gateway.now() + self._gateway.settings.stall_seconds
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writing_paused = False
        self.deadline = self._gateway.now() + self._gateway.settings.answer_seconds
        if self._upstream is not None:
            self._upstream.transport.resume_reading()
        self._pump()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        state = self._state
        if state >= _LINGER:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if state == _HEAD and not self._writing_paused:
            self._pump()
        elif state == _BODY:
            self._read_body()
        elif len(self._buffer) > MAX_PIPELINED_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def deadline_passed(self) -> None:
        """Give up on whatever takes too long; called by the gateway's sweep."""
        state = self._state
        if state == _BODY or (state == _HEAD and self._buffer):
            self._refuse(Reason.REQUEST_TIMEOUT)
        elif state == _UPSTREAM and not self._answering:
            if self._upstream is not None:
                self._upstream.abort()
            self._unread = _UNKNOWN  # a connection that is still being made must not be used
            self.response_failed()
        else:
            self.transport.abort()

    # --- the request -----------------------------------------------------------------------

    def _pump(self) -> None:
        """Serve what the buffer holds, until it is empty or something has to be waited for."""
        while self._buffer and self._state == _HEAD and not self._writing_paused:
            if not self._read_head():
                return

    def _read_head(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                self._refuse(Reason.HEAD_TOO_LARGE)
            elif is_hopeless(buffer):
                self._refuse(Reason.MALFORMED_REQUEST)
            elif self._head is not None:
                # The first bytes of the next request: from now on its deadline counts.
                self._head = None
                self.deadline = self._gateway.now() + self._gateway.settings.head_seconds
            return False
        head = parse_head(buffer[:end])
        self._buffer = buffer[end + 4 :]
        if isinstance(head, Verdict):
            self._refuse(head.reason)
            return False
        self._head = head
        self._unread = _UNKNOWN if head.chunked else head.content_length or 0
        self._serve(head)
        return True

    def _serve(self, head: RequestHead) -> None:
        gateway = self._gateway
        self._started = now = gateway.now()
        self._path = head.path
        self._keep_alive = head.keep_alive
        verdict = verify_request(
            head.method,
            head.path,
            head.headers,
            bearer_token(head.headers.get("authorization")),
            gateway.policy,
            gateway.budgets,
            now,
        )
        if not verdict.ok:
            self._refuse(verdict.reason)
            return
        self._trusted = True
        if head.method == "GET":
            if head.chunked or head.content_length:
                self._unread = _UNKNOWN
                self._refuse(Reason.MALFORMED_REQUEST)
            elif head.path == HEALTH_PATH:
                self._relay_health()
            else:
                self._answer(gateway.models_response(close=not head.keep_alive), Reason.OK)
            return
        self._expect_body(head, now)

    def _expect_body(self, head: RequestHead, now: float) -> None:
        settings, length = self._gateway.settings, head.content_length
        expectation = head.headers.get("expect")
        if not is_json(head.headers.get("content-type")) or "content-encoding" in head.headers:
            self._refuse(Reason.UNSUPPORTED_MEDIA_TYPE)
        elif expectation is not None and expectation.lower() != "100-continue":
            self._refuse(Reason.EXPECTATION_FAILED)
        elif length is None and not head.chunked:
            self._refuse(Reason.LENGTH_REQUIRED)
        elif length is not None and length > settings.max_body_bytes:
            self._refuse(Reason.BODY_TOO_LARGE)
        else:
            self._framer = ChunkFramer(collect=True) if head.chunked else None
            self._state = _BODY
            self.deadline = now + settings.body_seconds
            if expectation is not None and not self._buffer:
                self.transport.write(CONTINUE)
            self._read_body()

    def _read_body(self) -> None:
        head, buffer, framer = cast("RequestHead", self._head), self._buffer, self._framer
        if framer is None:
            length = head.content_length or 0
            if len(buffer) < length:
                return
            self._buffer = buffer[length:]
            self._finish_body(buffer[:length])
            return
        try:
            taken = framer.feed(buffer)
        except ChunkError:
            self._refuse(Reason.MALFORMED_REQUEST)
            return
        self._buffer = buffer[taken:]
        if framer.size > self._gateway.settings.max_body_bytes:
            self._refuse(Reason.BODY_TOO_LARGE)
        elif framer.done:
            self._framer = None
            self._finish_body(bytes(framer.payload or b""))

    def _finish_body(self, raw: bytes) -> None:
        """Pass body, lifecycle, admission and resources; then run, wait or refuse."""
        gateway = self._gateway
        self._state = _HEAD
        self._unread = 0
        fields = parse_body(raw, gateway.settings.model_id)
        if isinstance(fields, Verdict):
            self._refuse(fields.reason)
            return
        verdict = gateway.gate(gateway.queue.arrival())
        backend = gateway.backend
        if backend is None or not (verdict.ok or verdict.reason is Reason.AT_CAPACITY):
            self._refuse(verdict.reason if not verdict.ok else Reason.NOT_READY)
            return
        body = encode_body(
            fields, served_model=backend.served_model, drop_fields=backend.drop_fields
        )
        if isinstance(body, Verdict):
            self._refuse(body.reason)
            return
        self._body = body
        if verdict.ok:
            gateway.queue.take()
            self._run()
        else:
            self._state = _QUEUED
            self.deadline = float("inf")  # the queue keeps its own
            gateway.queue.wait(self, gateway.now())

    def place_is_free(self) -> None:
        """Use the place that the queue has handed over; lifecycle and resources count anew."""
        self._holds_place = True
        verdict = self._gateway.gate(OK)
        if self._state != _QUEUED:
            self._release_place()  # the client left in the same moment
        elif not verdict.ok:
            self.refuse_waiting(verdict.reason)
        else:
            self._run()

    def refuse_waiting(self, reason: Reason) -> None:
        """End the wait with a refusal."""
        self._state = _HEAD
        self._body = b""
        self._refuse(reason)
        self._release_place()
        self._pump()

    def _run(self) -> None:
        gateway = self._gateway
        body, self._body = self._body, b""
        self._holds_place = True
        self._started = gateway.now()
        self._send(gateway.inference_request(self._path, body), fresh=False)

    def _relay_health(self) -> None:
        if self._gateway.backend is None:
            self._refuse(Reason.NOT_READY)
        else:
            self._send(self._gateway.health_request, fresh=True)

    def _send(self, request: bytes, *, fresh: bool) -> None:
        settings = self._gateway.settings
        self._state = _UPSTREAM
        self._answering = False
        seconds = settings.health_seconds if fresh else settings.answer_seconds
        self.deadline = self._gateway.now() + seconds
        self._gateway.send(self, request, fresh=fresh)

    # --- the answer ------------------------------------------------------------------------

    def _answer(self, response: bytes, reason: Reason) -> None:
        """Write a whole answer of the gateway's own and be ready for the next request."""
        self._gateway.count(self._path, reason)
        self.transport.write(response)
        self._next_request()

    def _refuse(self, reason: Reason) -> None:
        """Answer with an error; close unless the request has been read in full."""
        gateway = self._gateway
        if 0 < self._unread <= len(self._buffer):
            self._buffer = self._buffer[self._unread :]
            self._unread = 0
        keep_alive = self._keep_alive and self._unread == 0
        response = error_response(
            reason, close=not keep_alive, retry_after=gateway.retry_after(reason)
        )
        if keep_alive:
            self._answer(response, reason)
        else:
            gateway.count(self._path, reason)
            self.transport.write(response)
            self._linger()

    def _linger(self) -> None:
        """Half close, so that the client can read the answer before the connection is gone.

        Closing with unread bytes would reset the connection and could destroy the answer.
        """
        self._state = _LINGER
        self._buffer = b""
        self.deadline = self._gateway.now() + LINGER_SECONDS
        if self._reading_paused:
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _next_request(self) -> None:
        settings = self._gateway.settings
        self._unread = _UNKNOWN
        if not self._keep_alive:
            self._state = _CLOSED
            self.transport.close()
            return
        self._state = _HEAD
        seconds = settings.idle_seconds if self._trusted else settings.head_seconds
        self.deadline = self._gateway.now() + seconds
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _release_place(self) -> None:
        if self._holds_place:
            self._holds_place = False
            self._gateway.release_place(self._gateway.now() - self._started)

    # --- what the backend answers ------------------------------------------------------------

    def upstream_bound(self, connection: BackendConnection) -> bool:
        """See `Sink`."""
        if self._state != _UPSTREAM:
            return False
        self._upstream = connection
        return True

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """See `Sink`."""
        self._answering = True
        if head.content_length is None and not head.chunked:
            self._keep_alive = False  # the end of the connection is the end of the answer
        passed_on = relayed_head(
            head.status,
            head.content_type,
            head.content_length,
            chunked=head.chunked,
            close=not self._keep_alive,
        )
        self.response_data(passed_on + body)

    def response_data(self, data: bytes) -> None:
        """See `Sink`."""
        self.transport.write(data)
        if not self._writing_paused:
            gateway = self._gateway
            self.deadline = gateway.last_sweep + gateway.settings.answer_seconds

    def response_ended(self) -> None:
        """See `Sink`."""
        if self._upstream is not None and self._writing_paused:
            self._upstream.transport.resume_reading()
        self._upstream = None
        self._gateway.count(self._path, Reason.OK)
        self._release_place()
        self._next_request()
        self._pump()

    def response_failed(self) -> None:
        """See `Sink`."""
        if self._state != _UPSTREAM:
            return
        self._upstream = None
        if self._answering:
            self._gateway.count(self._path, Reason.UPSTREAM_FAILED)
            self.transport.abort()  # the client sees that the answer is incomplete
            return
        self._state = _HEAD
        self._refuse(Reason.UPSTREAM_FAILED)
        self._release_place()
        self._pump()
