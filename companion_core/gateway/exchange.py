"""One request on its way to the backend, and its answer on the way back.

Lifecycle, admission, resources and the body are passed in this order (I-10). Each client
connection has one exchange, used for one request after the other. Nothing here awaits:
the queue and the backend's connection call back. `states` lists what can follow on what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.gateway.answers import FIRST_ERROR, AnswerEditor, AnswerRules
from companion_core.gateway.backend_requests import BackendRequests
from companion_core.gateway.context import GatewayContext
from companion_core.gateway.counting import CountingSink
from companion_core.gateway.heartbeat import Heartbeat, StreamingClient
from companion_core.gateway.http.body import LARGE_BODY, parse_body, parse_large_body
from companion_core.gateway.http.head import preferred_wait
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import context_error
from companion_core.gateway.interface import Downstream, Sink, Upstream
from companion_core.gateway.states import EXCHANGE_TABLE, ExchangeEvent, ExchangeState
from companion_core.gateway.token_count import CountedAnswer
from companion_core.gateway.upstream import BackendPool

__all__ = ["MAX_HELD_CHECKS", "Exchange"]

# The start's own check, and some that clients make; any further one is refused at once.
MAX_HELD_CHECKS: Final = 8
# Observations come twice a second, and one takes a second and a half at most.
OBSERVATION_SECONDS: Final = 3.0

_IDLE: Final = ExchangeState.IDLE
_AWAITING_CHECK: Final = ExchangeState.AWAITING_CHECK
_AWAITING_PLACE: Final = ExchangeState.AWAITING_PLACE
_AWAITING_BACKEND: Final = ExchangeState.AWAITING_BACKEND
_AWAITING_ANSWER: Final = ExchangeState.AWAITING_ANSWER
_RELAYING: Final = ExchangeState.RELAYING
_CHECKING: Final = EXCHANGE_TABLE[ExchangeEvent.CHECKING]
_QUEUED: Final = EXCHANGE_TABLE[ExchangeEvent.QUEUED]
_HELD: Final = EXCHANGE_TABLE[ExchangeEvent.HELD]
_SENT: Final = EXCHANGE_TABLE[ExchangeEvent.SENT]
_ANSWER_STARTED: Final = EXCHANGE_TABLE[ExchangeEvent.ANSWER_STARTED]
_ANSWER_ENDED: Final = EXCHANGE_TABLE[ExchangeEvent.ANSWER_ENDED]
_GIVEN_UP: Final = EXCHANGE_TABLE[ExchangeEvent.GIVEN_UP]


class Exchange:
    """The `Waiter`, the `HeldCheck` and the `Sink` of one client.

    Attributes:
        response_data: see `Sink`; the client's connection takes the bytes as they are.
    """

    __slots__ = (
        "_answers",
        "_client",
        "_context",
        "_counting",
        "_downstream",
        "_editor",
        "_heartbeat",
        "_made_by",
        "_paused",
        "_request",
        "_running_since",
        "_state",
        "_then",
        "_upstream",
        "response_data",
    )

    def __init__(self, context: GatewayContext, client: StreamingClient) -> None:
        self._context = context
        self._client = client
        self._downstream: Downstream = client
        self._heartbeat: Heartbeat | None = None  # between this and the client, for a stream
        self._state = _IDLE
        self._request = b""  # while it waits for a place or is counted
        self._made_by: BackendRequests | None = None  # it is for that backend alone
        self._upstream: Upstream | None = None
        self._counting: CountingSink | None = None  # the backend counts this request first
        self._answers: AnswerRules | None = None  # what is translated in its answer
        self._editor: AnswerEditor | None = None  # of the answer that is on its way
        self._then: Callable[[float], None] | None = None  # after the next observation
        self._paused = False  # the client does not read its answer
        self._running_since: float | None = None  # set while it has a place
        self.response_data = client.answer_data

    # --- on the way to the backend ---------------------------------------------------------

    def begin(self, path: str, raw: bytes | bytearray, now: float) -> None:
        """Run, queue or refuse a request whose head has passed the guard."""
        context = self._context
        verdict = context.gate_arrival()
        if verdict is None:
            self.await_observation(partial(self.begin, path, raw), now)
        elif not (verdict.ok or verdict.reason is Reason.AT_CAPACITY):
            self._downstream.refuse(verdict.reason)
        elif len(raw) > LARGE_BODY:
            self._state = _CHECKING[self._state]
            self._downstream.wait_for_backend(math.inf)  # it takes a second at most
            work = parse_large_body(raw, context.settings.model_id, context.aliases)
            context.checks.start(self, work, partial(self._body_checked, path, len(raw)))
        else:
            fields = parse_body(raw, context.settings.model_id, context.aliases)
            self._admit(path, fields, len(raw), verdict, now)

    def _body_checked(self, path: str, size: int, fields: dict[str, Any] | Verdict) -> None:
        if self._state is not _AWAITING_CHECK:  # the client left in the same moment
            return
        self._give_up()
        self._admit_later(path, fields, size, self._context.now())
        self._downstream.serve_next()

    def _admit_later(
        self, path: str, fields: dict[str, Any] | Verdict, size: int, now: float
    ) -> None:
        """As `_admit`, after the gate has been asked again."""
        verdict = self._context.gate_arrival()
        if verdict is None:
            self.await_observation(partial(self._admit_later, path, fields, size), now)
        elif not (verdict.ok or verdict.reason is Reason.AT_CAPACITY):
            self._downstream.refuse(verdict.reason)
        else:
            self._admit(path, fields, size, verdict, now)

    def _admit(
        self, path: str, fields: dict[str, Any] | Verdict, size: int, verdict: Verdict, now: float
    ) -> None:
        """Run or queue, as the gate's `verdict` says, or refuse a request for its body."""
        context = self._context
        queue, requests, pool = context.queue, context.requests, context.pool
        if isinstance(fields, Verdict):
            self._downstream.refuse(fields.reason)
            return
        if requests is None or pool is None:
            self._downstream.refuse(Reason.NOT_READY)
            return
        answers, streams = requests.answers(fields["model"]), fields.get("stream") is True
        counts = [] if requests.cuts_at is None else requests.counts(path, fields, size)
        request = requests.inference(path, fields)
        if isinstance(request, Verdict):
            self._downstream.refuse(request.reason)
            return
        self._answers, self._counting = answers, CountingSink(self, counts) if counts else None
        if (seconds := context.settings.heartbeat_seconds) and streams:
            self._put_between(Heartbeat(self._client, path, seconds, context.now))
        if verdict.ok:
            queue.take()
            self._run(pool, request, now)
        else:
            queue.wait(self, now)
            self._state = _QUEUED[self._state]
            self._request = request
            self._made_by = requests
            self._downstream.wait_for_backend(math.inf)  # the queue has its own deadline

    def await_observation(self, then: Callable[[float], None], now: float) -> None:
        """Go on with `then`, at the time that it is called with, after the next observation.

        The newest one is too old because the companion was held up: that is not the client's fault.
        """
        self._state = _CHECKING[self._state]
        self._then = then
        self._downstream.wait_for_backend(now + OBSERVATION_SECONDS)
        self._context.when_observed(self._observed)

    def _observed(self) -> None:
        then = self._then
        if then is None:  # refused meanwhile, or the client has left
            return
        if self._context.gate(OK) is None:  # held up once more
            self._context.when_observed(self._observed)
            return
        answers, counting, heartbeat = self._answers, self._counting, self._heartbeat
        self._give_up()
        self._answers, self._counting = answers, counting  # of one that had waited for a place
        self._put_between(heartbeat)
        then(self._context.now())
        self._downstream.serve_next()

    def begin_health_check(self, now: float, head: bytes) -> None:
        """Relay a health check, or hold it if its client would rather wait for a backend.

        It needs no place, and a connection of its own proves more.

        Args:
            now: on the gateway's clock.
            head: of the request.
        """
        context = self._context
        if context.requests is not None and context.pool is not None:
            self._state = _SENT[self._state]
            self._downstream.wait_for_backend(now + context.settings.health_seconds)
            context.pool.open_and_send(self, context.requests.health_check, check=True)
        elif (wait := preferred_wait(head)) and len(context.held_checks) < MAX_HELD_CHECKS:
            self._state = _HELD[self._state]
            self._downstream.wait_for_backend(now + min(wait, context.settings.hold_seconds))
            context.held_checks[self] = None
        else:
            self._downstream.refuse(Reason.NOT_READY)

    def relay_held_check(self, now: float) -> None:
        """See `HeldCheck`; the time it was held does not count as time to answer."""
        self._downstream.count_from(now)
        self.begin_health_check(now, b"")

    def place_is_free(self) -> None:
        """See `Waiter`: lifecycle and resources are asked again, and so is the backend."""
        now = self._context.now()
        self._running_since = now
        if self._state is not _AWAITING_PLACE:
            self._release_place(now)  # the client left in the same moment
        else:
            self._use_place(self._request, self._made_by, now)

    def _use_place(self, request: bytes, made_by: BackendRequests | None, now: float) -> None:
        context = self._context
        verdict, pool = context.gate(OK), context.pool
        if verdict is None:
            self.await_observation(partial(self._use_place, request, made_by), now)
        elif not verdict.ok:
            self.refuse_waiting(verdict.reason)
        elif pool is None or context.requests is not made_by:
            self.refuse_waiting(Reason.NOT_READY)
        else:
            self._request, self._made_by = b"", None
            self._run(pool, request, now)

    def refuse_waiting(self, reason: Reason) -> None:
        """See `Waiter`."""
        self._refuse(reason)

    def _run(self, pool: BackendPool, request: bytes, now: float) -> None:
        """Send a request whose place is taken, before anything that can follow later."""
        self._running_since = now
        self._state = _SENT[self._state]
        counting = self._counting
        if counting is None or (first := counting.next_request()) is None:
            self._send(pool, self, request, now)
        else:
            self._request, self._made_by = request, self._context.requests
            self._send(pool, counting, first, now)

    def _send(self, pool: BackendPool, sink: Sink, request: bytes, now: float) -> None:
        self._upstream = connection = pool.take_idle(now)
        if connection is None:
            pool.open_and_send(sink, request)
        else:
            connection.send(sink, request)
        self._downstream.body_sent()
        self._downstream.wait_for_backend(now + self._context.settings.first_byte_seconds)

    def count_ended(self, count: CountedAnswer, now: float) -> None:
        """See `Counted`: count what is left, send the request, or refuse what would be cut."""
        self._release_upstream()
        counting, made_by, pool = self._counting, self._made_by, self._context.pool
        if counting is None or made_by is None or pool is None:
            self._refuse(Reason.NOT_READY)
            return
        tokens, most = count.tokens(), made_by.cuts_at
        if made_by is not self._context.requests:
            self._refuse(Reason.NOT_READY)
        elif tokens is None and not count.failed:
            self._refuse(Reason.UPSTREAM_FAILED)
        elif tokens is not None and most is not None and tokens >= most:
            self._answer_too_long(tokens, most, now)
        elif (another := counting.next_request()) is not None:
            self._send(pool, counting, another, now)
        else:
            request, self._request, self._made_by = self._request, b"", None
            self._send(pool, self, request, now)

    def _answer_too_long(self, tokens: int, most: int, now: float) -> None:
        status, text = context_error(tokens, most)
        head = ResponseHead(status, "application/json", len(text), chunked=False, reusable=True)
        self._answers = None
        self.response_started(head, text)
        self.response_ended(now)

    def _refuse(self, reason: Reason) -> None:
        """Refuse after waiting; the client's next request may already lie in its buffer."""
        downstream = self._downstream
        self._give_up()
        downstream.refuse(reason)
        self._release_place(self._context.now())
        self._downstream.serve_next()

    def _give_up(self) -> None:
        self._state = _GIVEN_UP[self._state]
        self._context.held_checks.pop(self, None)
        self._context.checks.cancel(self)
        self._request = b""
        self._made_by = None
        self._then = None
        self._upstream = None
        self._end_editing()
        self._put_between(None)

    def _put_between(self, heartbeat: Heartbeat | None) -> None:
        """Answer the client by this heartbeat, or as it is."""
        if heartbeat is not self._heartbeat:
            self._heartbeat = heartbeat
            self._downstream = self._client if heartbeat is None else heartbeat
            self.response_data = self._downstream.answer_data

    def look_at_silence(self, now: float) -> None:
        """Have a stream that was silent for too long get a comment."""
        if self._heartbeat is not None:
            self._heartbeat.beat(now)

    def _release_place(self, now: float) -> None:
        since, self._running_since = self._running_since, None
        if since is not None:
            self._context.release_place(now - since)

    # --- what happens to the client meanwhile ----------------------------------------------

    def client_left(self) -> None:
        """Free the place at once and stop the backend; harmless when no request is under way."""
        if self._state is _AWAITING_PLACE:
            self._context.queue.leave(self)
        if self._upstream is not None:
            self._upstream.abort()
        self._give_up()
        self._release_place(self._context.now())

    def deadline_passed(self) -> None:
        """The backend took too long to come, to begin, or to go on."""
        if self._state is _AWAITING_BACKEND or self._state is _AWAITING_CHECK:
            unready = self._state is _AWAITING_BACKEND
            self._refuse(Reason.NOT_READY if unready else Reason.PROBE_FAILED)
            return
        if self._upstream is not None:
            self._upstream.abort()
        self.response_failed()

    def pause(self) -> bool:
        """Stop reading from the backend; say whether an answer is being relayed."""
        self._paused = True
        if self._upstream is not None:
            self._upstream.pause_reading()
        return self._state is _RELAYING

    def resume(self) -> bool:
        """Read on from the backend; say whether an answer is being relayed."""
        self._paused = False
        if self._upstream is not None:
            self._upstream.resume_reading()
        return self._state is _RELAYING

    # --- on the way back -------------------------------------------------------------------

    def upstream_bound(self, upstream: Upstream) -> bool:
        """See `Sink`."""
        if self._state is not _AWAITING_ANSWER:
            return False
        self._upstream = upstream
        return True

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """See `Sink`."""
        answers = self._answers
        if answers is not None and (answers.every_answer or head.status >= FIRST_ERROR):
            self._editor = answers.editor(head)
        if self._editor is None:
            self._state = _ANSWER_STARTED[self._state]
            self._downstream.answer_started(head, body)
        else:
            self.response_data = self._edit
            if self._editor.head is not None:
                self._state = _ANSWER_STARTED[self._state]
                self._downstream.answer_started(self._editor.head, b"")
            self._edit(body)

    def _edit(self, data: bytes) -> None:
        """Take more of the body in place of the client's connection."""
        editor = self._editor
        if editor is None:
            return
        try:
            edited = editor.feed(data)
        except OverflowError:
            if self._upstream is not None:
                self._upstream.abort()
            self.response_failed()
            return
        if edited:
            self._downstream.answer_data(edited)

    def _end_editing(self) -> None:
        self._answers = None
        self._counting = None
        if self._editor is not None:
            self._editor = None
            self.response_data = self._downstream.answer_data

    def response_ended(self, now: float) -> None:
        """See `Sink`."""
        editor = self._editor
        if editor is not None:
            head, rest = editor.finish()
            if head is not None:
                self._state = _ANSWER_STARTED[self._state]
                self._downstream.answer_started(head, rest)
            else:
                self._downstream.answer_data(rest)
        self._end_editing()
        self._state = _ANSWER_ENDED[self._state]
        self._release_upstream()
        since, self._running_since = self._running_since, None
        if since is not None:
            self._context.release_place(now - since)
        downstream = self._downstream
        self._put_between(None)
        downstream.answer_ended(now)

    def _release_upstream(self) -> None:
        """Let go of a backend's connection whose answer is complete; it may serve others."""
        upstream, self._upstream = self._upstream, None
        if self._paused and upstream is not None:
            upstream.resume_reading()

    def response_failed(self) -> None:
        """See `Sink`."""
        if self._state is _AWAITING_ANSWER:
            self._refuse(Reason.UPSTREAM_FAILED)
        elif self._state is _RELAYING:
            self._give_up()
            self._client.break_off(Reason.UPSTREAM_FAILED)
            self._release_place(self._context.now())
