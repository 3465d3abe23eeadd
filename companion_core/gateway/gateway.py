"""The loopback front door: binds, routes, counts and sweeps; the only way in to the backend.

`Gateway` holds what its connections share. It asks the companion two constant-time questions
per request (`ServingConditions`) and manages nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.decisions.guard import (
    HEALTH_PATH,
    RateBudgets,
    guard_policy,
    loopback_hosts,
    tokens_equal,
)
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.request_gate import gate_request
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.gateway.backend_requests import BackendRequests, served_routes
from companion_core.gateway.client import ClientConnection
from companion_core.gateway.connections import ConnectionTable
from companion_core.gateway.http.head import RequestHead
from companion_core.gateway.http.responses import (
    error_response,
    json_response,
    without_body,
)
from companion_core.gateway.http.second_parser import head_parser
from companion_core.gateway.listener import bind_loopback
from companion_core.gateway.metrics import RequestMetrics
from companion_core.gateway.queue import AdmissionQueue
from companion_core.gateway.settings import Backend, GatewaySettings, ServingConditions
from companion_core.gateway.upstream import BackendPool
from companion_core.providers import OPENAI_ROUTES, Route

if TYPE_CHECKING:
    from companion_core.gateway.exchange import Exchange

__all__ = ["Gateway"]

MODELS_PATH: Final = "/v1/models"
SWEEP_SECONDS: Final = 0.5
LISTEN_BACKLOG: Final = 512
# How many connections the event loop accepts before it looks at any of them: together with
# those that are open they must stay below the usual limit of 1,024 open files.
ACCEPTED_AT_ONCE: Final = 64
NOT_READY_RETRY_SECONDS: Final = 5

_NOT_READY = refuse(Reason.NOT_READY)
_OWN_ROUTES: Final = {MODELS_PATH: "GET", HEALTH_PATH: "GET"}


class Gateway:
    """The front door of one companion.

    Attributes:
        held: health checks that wait for a backend, in their order.
        more_deadline: for the next part of an answer that goes on now; as coarse as the sweep.

    Raises:
        UsageError: `secret_invalid` for a token that is too short or no visible ASCII;
            `configuration_invalid` for a bound that is no positive number.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        conditions: ServingConditions,
        *,
        egress: Egress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.now = clock
        self.backend: Backend | None = None
        self.requests: BackendRequests | None = None
        self.connections = ConnectionTable(settings.max_connections)
        self.more_deadline = clock() + settings.between_bytes_seconds
        self.parse_head = head_parser(second=settings.second_parser)
        self.port = 0
        self._conditions = conditions
        self._egress = egress
        self.pool: BackendPool | None = None
        self.held: dict[Exchange, None] = {}
        self._expected: tuple[Backend, BackendRequests] | None = None
        self._servers: list[asyncio.Server] = []
        self._hosts: tuple[str, ...] = ()
        self._sweep: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None
        self.metrics = RequestMetrics({**served_routes(OPENAI_ROUTES), **_OWN_ROUTES})
        self.name_model(settings.model_id)
        try:
            self.queue = AdmissionQueue(
                max_in_flight=settings.max_in_flight,
                queue_bound=settings.queue_bound,
                deadline_seconds=settings.queue_deadline_seconds,
            )
            self.budgets = RateBudgets(
                owner=RateWindow.per_minute(settings.requests_per_minute),
                strangers=RateWindow.per_minute(settings.strangers_per_minute),
            )
        except ValueError as error:
            raise UsageError(Reason.CONFIGURATION_INVALID) from error
        self._set_policy()
        if self.policy.token is None:
            raise UsageError(Reason.SECRET_INVALID)

    # --- listening -------------------------------------------------------------------------

    @property
    def bound(self) -> bool:
        """Whether the gateway holds its port."""
        return bool(self._servers) and all(server.is_serving() for server in self._servers)

    @property
    def base_url(self) -> str:
        """What clients are given."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Take the port on 127.0.0.1 and, where there is one, on [::1] (I-17).

        Raises:
            EnvironmentUnavailable: `listener_not_bound`.
        """
        try:
            listeners = bind_loopback(self.settings.port)
        except OSError as error:
            raise EnvironmentUnavailable(Reason.LISTENER_NOT_BOUND) from error
        loop = asyncio.get_running_loop()
        addresses = [listener.getsockname()[:2] for listener in listeners]
        self.port = addresses[0][1]
        self._hosts = tuple(host for address in addresses for host in loopback_hosts(*address))
        self._set_policy()
        for listener in listeners:
            self._servers.append(
                await loop.create_server(
                    lambda: ClientConnection(self), sock=listener, backlog=ACCEPTED_AT_ONCE
                )
            )
            listener.listen(LISTEN_BACKLOG)

    async def close(self) -> None:
        """Give the port back and end every connection, unanswered requests included."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self.detach()
        await self.connections.abort_all()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    # --- the backend -----------------------------------------------------------------------

    def name_model(self, model_id: str) -> None:
        """Take requests that name this model, and list no other, from now on."""
        self.settings = replace(self.settings, model_id=model_id)
        model = {"id": model_id, "object": "model", "created": 0, "owned_by": "companion"}
        body = json.dumps({"object": "list", "data": [model]}).encode()
        self._models = {close: json_response(200, body, close=close) for close in (False, True)}

    def attach(self, backend: Backend) -> None:
        """Send requests to `backend` from now on, first of all what was held for it."""
        self.expect(backend)
        self.attach_expected()

    def expect(self, backend: Backend) -> None:
        """Get all ready for `backend`; nothing is sent to it before it is attached (I-07)."""
        self._let_go()
        self._drained = None
        self._expected = backend, BackendRequests(backend)
        self.pool = BackendPool(backend.channel, self._egress, self.now)
        self._set_policy(backend.routes)

    def connect_expected(self) -> None:
        """Connect to the backend that is expected; its first request finds that made."""
        if self.pool is not None and self.pool.holds_nothing:
            self.pool.open_ahead()

    def disconnect_expected(self) -> None:
        """Let go of a connection made ahead: whoever takes one at a time waits for its request."""
        if self._expected is not None:
            self.expect(self._expected[0])

    def attach_expected(self) -> None:
        """As `attach`, of the backend that was expected; nothing where none is."""
        if self._expected is None:
            return
        self.backend, self.requests = self._expected
        held, now = list(self.held), self.now()
        self.held.clear()
        for exchange in held:
            exchange.relay_held_check(now)

    def detach(self) -> None:
        """Send no more requests; what waits is refused and what runs is broken off."""
        self._let_go()
        self._set_policy()

    def _let_go(self) -> None:
        self.backend = self.requests = self._expected = None
        self._refuse_waiting()
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    async def drain(self, seconds: float) -> bool:
        """Refuse new work and wait for what runs; say whether all of it ended in time."""
        self._drained = drained = asyncio.Event()
        self._refuse_waiting()
        if self.queue.in_flight == 0:
            return True
        try:
            async with asyncio.timeout(seconds):
                await drained.wait()
        except TimeoutError:
            return False
        return True

    # --- what each request asks ------------------------------------------------------------

    def gate(self, admission: Verdict) -> Verdict:
        """Return the first refusal of lifecycle, admission and resources."""
        if self.backend is None or self._drained is not None:
            return _NOT_READY
        return gate_request(self._conditions.lifecycle(), admission, self._conditions.resources())

    def models_response(self, *, close: bool) -> bytes:
        """Return the answer to `GET /v1/models`."""
        return self._models[close]

    def refusal(self, reason: Reason, head: RequestHead | None, *, close: bool) -> bytes:
        """Return the answer to a refused request; `head` is None where none was understood."""
        response = error_response(
            reason,
            close=close,
            retry_after=self._retry_after(reason, "" if head is None else head.token),
        )
        return without_body(response) if head is not None and head.method == "HEAD" else response

    def _retry_after(self, reason: Reason, token: str) -> int:
        """Return in how many seconds whoever showed `token` may send its request again."""
        if reason is Reason.RATE_LIMITED:
            owner = tokens_equal(token, self.settings.token.reveal())
            window = self.budgets.owner if owner else self.budgets.strangers
            return max(1, math.ceil(window.seconds_until_free(self.now()))) if window else 1
        if reason in {Reason.QUEUE_FULL, Reason.QUEUE_DEADLINE}:
            return self.queue.retry_after()
        return NOT_READY_RETRY_SECONDS

    def release_place(self, seconds: float) -> None:
        """Take a place back and hand it to the first who waits."""
        waiter = self.queue.release(seconds)
        if waiter is not None:
            asyncio.get_running_loop().call_soon(waiter.place_is_free)
        elif self._drained is not None and self.queue.in_flight == 0:
            self._drained.set()

    # --- the connections -------------------------------------------------------------------

    def connection_opened(self, connection: ClientConnection) -> bool:
        """Note a connection; False when there are too many."""
        if self._sweep is None:
            self._schedule_sweep()
        return self.connections.add(connection)

    def _schedule_sweep(self) -> None:
        self.more_deadline = self.now() + self.settings.between_bytes_seconds
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep_deadlines)

    def _sweep_deadlines(self) -> None:
        # One timer for all connections costs a request nothing; deadlines are half a second coarse.
        now = self.now()
        self._sweep = None
        if self.connections or self.backend is not None:
            self._schedule_sweep()  # first of all, so that no fault below is the last sweep
        for waiter in self.queue.expired(now):
            waiter.refuse_waiting(Reason.QUEUE_DEADLINE)
        for connection in [one for one in self.connections if one.deadline <= now]:
            connection.deadline_passed()
        if self.pool is not None:
            self.pool.close_idle(now)

    def _refuse_waiting(self) -> None:
        for waiter in self.queue.clear():
            waiter.refuse_waiting(Reason.NOT_READY)

    def _set_policy(self, routes: Iterable[Route] = OPENAI_ROUTES) -> None:
        self.policy = guard_policy(
            hosts=self._hosts,
            routes={**served_routes(routes), **_OWN_ROUTES},
            token=self.settings.token,
            minimum_token_length=self.settings.minimum_token_length,
        )

    # --- what the companion reads ----------------------------------------------------------

    def snapshot(self) -> AdmissionSnapshot:
        """Return how many requests run and wait."""
        return self.queue.snapshot()

    def metrics_text(self) -> str:
        """Return the counters as Prometheus text: by reason and path, never by content (I-15)."""
        return self.metrics.text(self.snapshot(), len(self.connections))
