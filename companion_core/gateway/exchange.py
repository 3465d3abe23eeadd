"""One request on its way to the backend, and its answer on the way back.

Body, lifecycle, admission and resources are passed in this order (I-10). Each client
connection has one exchange, used for one request after the other. Nothing here awaits:
the queue and the backend's connection call back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.gateway.backend_requests import BackendRequests
from companion_core.gateway.http.body import parse_body
from companion_core.gateway.http.head import preferred_wait
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import relayed_head
from companion_core.gateway.upstream import BackendConnection, BackendPool

if TYPE_CHECKING:
    from companion_core.gateway.client import ClientConnection
    from companion_core.gateway.gateway import Gateway

__all__ = ["Exchange"]

# What an exchange waits for. Plain integers: they are compared several times per request.
_NOTHING: Final = 0
_A_PLACE: Final = 1
_FIRST_BYTE: Final = 2
_MORE: Final = 3  # the head of the answer has been passed on
_A_BACKEND: Final = 4

# The start's own check, and some that clients make: whoever is not held is told to ask again.
MAX_HELD: Final = 8


class Exchange:
    """The `Waiter` and the `Sink` of one client."""

    __slots__ = (
        "_client",
        "_gateway",
        "_holds_place",
        "_made_by",
        "_request",
        "_running_since",
        "_upstream",
        "_waits_for",
    )

    def __init__(self, gateway: Gateway, client: ClientConnection) -> None:
        self._gateway = gateway
        self._client = client
        self._waits_for = _NOTHING
        self._request = b""  # while it waits for a place
        self._made_by: BackendRequests | None = None  # it is for that backend alone
        self._upstream: BackendConnection | None = None
        self._holds_place = False
        self._running_since = 0.0

    # --- on the way to the backend ---------------------------------------------------------

    def begin(self, path: str, raw: bytes | bytearray, now: float) -> None:
        """Run, queue or refuse a request whose head has passed the guard."""
        gateway = self._gateway
        fields = parse_body(raw, gateway.settings.model_id)
        if isinstance(fields, Verdict):
            self._client.refuse(fields.reason)
            return
        verdict = gateway.gate(gateway.queue.arrival())
        requests, pool = gateway.requests, gateway.pool
        if not (verdict.ok or verdict.reason is Reason.AT_CAPACITY):
            self._client.refuse(verdict.reason)
            return
        if requests is None or pool is None:
            self._client.refuse(Reason.NOT_READY)
            return
        request = requests.inference(path, fields)
        if isinstance(request, Verdict):
            self._client.refuse(request.reason)
        elif verdict.ok:
            gateway.queue.take()
            self._run(pool, request, now)
        else:
            self._request = request
            self._made_by = requests
            self._waits_for = _A_PLACE
            self._client.wait_for_backend(float("inf"))  # the queue keeps its own deadline
            gateway.queue.wait(self, now)

    def begin_health_check(self, now: float, head: bytes) -> None:
        """Relay a health check, or hold it if its client would rather wait for a backend.

        It needs no place, and a connection of its own proves more.

        Args:
            now: on the gateway's clock.
            head: of the request.
        """
        gateway = self._gateway
        if gateway.requests is not None and gateway.pool is not None:
            self._waits_for = _FIRST_BYTE
            self._client.wait_for_backend(now + gateway.settings.health_seconds)
            gateway.pool.open_and_send(self, gateway.requests.health_check, check=True)
        elif (wait := preferred_wait(head)) and len(gateway.held) < MAX_HELD:
            self._waits_for = _A_BACKEND
            self._client.wait_for_backend(now + min(wait, gateway.settings.hold_seconds))
            gateway.held[self] = None
        else:
            self._client.refuse(Reason.NOT_READY)

    def relay_held_check(self, now: float) -> None:
        """Relay what was held; what it waited is no part of how long the answer takes."""
        self._client.count_from(now)
        self.begin_health_check(now, b"")

    def place_is_free(self) -> None:
        """See `Waiter`: lifecycle and resources count anew, and so does the backend."""
        gateway = self._gateway
        now = gateway.now()
        self._holds_place = True
        self._running_since = now
        verdict, pool = gateway.gate(OK), gateway.pool
        if self._waits_for != _A_PLACE:
            self._release_place(now)  # the client left in the same moment
        elif not verdict.ok:
            self.refuse_waiting(verdict.reason)
        elif pool is None or gateway.requests is not self._made_by:
            self.refuse_waiting(Reason.NOT_READY)
        else:
            self._run(pool, self._request, now)

    def refuse_waiting(self, reason: Reason) -> None:
        """See `Waiter`."""
        self._refuse(reason)

    def _run(self, pool: BackendPool, request: bytes, now: float) -> None:
        """Send a request whose place is taken; first of all, because somebody waits for it."""
        self._holds_place = True
        self._waits_for = _FIRST_BYTE
        self._upstream = connection = pool.take_idle(now)
        if connection is None:
            pool.open_and_send(self, request)
        else:
            connection.send(self, request)
        self._request = b""
        self._made_by = None
        self._running_since = now
        self._client.wait_for_backend(now + self._gateway.settings.first_byte_seconds)

    def _refuse(self, reason: Reason) -> None:
        """Refuse after waiting; the client's next request may already lie in its buffer."""
        self._end()
        self._client.refuse(reason)
        self._release_place(self._gateway.now())
        self._client.serve_buffer()

    def _end(self) -> None:
        self._gateway.held.pop(self, None)
        self._waits_for = _NOTHING
        self._request = b""
        self._made_by = None
        self._upstream = None

    def _release_place(self, now: float) -> None:
        if self._holds_place:
            self._holds_place = False
            self._gateway.release_place(now - self._running_since)

    # --- what happens to the client meanwhile ----------------------------------------------

    def client_left(self) -> None:
        """Free the place at once and stop the backend; harmless when nothing is under way."""
        if self._waits_for == _A_PLACE:
            self._gateway.queue.leave(self)
        if self._upstream is not None:
            self._upstream.abort()
        self._end()
        self._release_place(self._gateway.now())

    def deadline_passed(self) -> None:
        """The backend took too long to come, to begin, or to go on."""
        if self._waits_for == _A_BACKEND:
            self._refuse(Reason.NOT_READY)
            return
        if self._upstream is not None:
            self._upstream.abort()
        self.response_failed()

    def pause(self) -> bool:
        """Stop reading from the backend; say whether an answer is being passed on."""
        if self._upstream is not None:
            self._upstream.transport.pause_reading()
        return self._waits_for == _MORE

    def resume(self) -> bool:
        """Read on from the backend; say whether an answer is being passed on."""
        if self._upstream is not None:
            self._upstream.transport.resume_reading()
        return self._waits_for == _MORE

    # --- on the way back -------------------------------------------------------------------

    def upstream_bound(self, connection: BackendConnection) -> bool:
        """See `Sink`."""
        if self._waits_for != _FIRST_BYTE:
            return False
        self._upstream = connection
        return True

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """See `Sink`."""
        client = self._client
        self._waits_for = _MORE
        if head.content_length is None and not head.chunked:
            client.keep_alive = False  # the end of the connection is the end of such an answer
        client.transport.write(relayed_head(head, close=not client.keep_alive) + body)
        if not client.writing_paused:
            client.deadline = self._gateway.more_deadline

    def response_data(self, data: bytes) -> None:
        """See `Sink`."""
        client = self._client
        client.transport.write(data)
        if not client.writing_paused:
            client.deadline = self._gateway.more_deadline

    def response_ended(self, now: float) -> None:
        """See `Sink`."""
        client, upstream = self._client, self._upstream
        self._waits_for = _NOTHING
        self._upstream = None
        if client.writing_paused and upstream is not None:
            upstream.transport.resume_reading()
        if self._holds_place:
            self._holds_place = False
            self._gateway.release_place(now - self._running_since)
        client.answer_ended(now)

    def response_failed(self) -> None:
        """See `Sink`."""
        waited_for = self._waits_for
        if waited_for == _FIRST_BYTE:
            self._refuse(Reason.UPSTREAM_FAILED)
        elif waited_for == _MORE:
            self._end()
            self._client.break_off(Reason.UPSTREAM_FAILED)
            self._release_place(self._gateway.now())
