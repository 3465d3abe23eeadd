"""The loopback front door: binds, routes, counts and sweeps; the only way in to the backend.

`Gateway` holds what its connections share. It asks the companion two constant-time questions
per request (`ServingConditions`) and manages nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Final

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
from companion_core.egress import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.gateway.client import ClientConnection
from companion_core.gateway.listener import bind_loopback
from companion_core.gateway.metrics import RequestMetrics
from companion_core.gateway.queue import AdmissionQueue
from companion_core.gateway.responses import json_response
from companion_core.gateway.settings import Backend, GatewaySettings, ServingConditions
from companion_core.gateway.upstream import BackendPool
from companion_core.providers import OPENAI_ROUTES

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
_INFERENCE_ROUTES: Final = frozenset((route.path, route.method) for route in OPENAI_ROUTES)


class Gateway:
    """The front door of one companion.

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
        self.drop_fields: frozenset[str] = frozenset()
        self.connections: set[ClientConnection] = set()
        self.last_sweep = clock()
        self.health_request = b""
        self.port = 0
        self._conditions = conditions
        self._egress = egress
        self.pool: BackendPool | None = None
        self._servers: list[asyncio.Server] = []
        self._hosts: tuple[str, ...] = ()
        self._sweep: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None
        self._all_closed = asyncio.Event()
        self._strangers: dict[ClientConnection, None] = {}  # never showed the token; oldest first
        self.metrics = RequestMetrics()
        self._request_heads: dict[str, bytes] = {}
        models = {
            "object": "list",
            "data": [
                {"id": settings.model_id, "object": "model", "created": 0, "owned_by": "companion"}
            ],
        }
        body = json.dumps(models).encode()
        self._models = {close: json_response(200, body, close=close) for close in (False, True)}
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
        for connection in list(self.connections):
            connection.transport.abort()
        if self.connections:
            await self._all_closed.wait()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    # --- the backend -----------------------------------------------------------------------

    def attach(self, backend: Backend) -> None:
        """Send requests to `backend` from now on."""
        self.detach()
        self._drained = None
        authorization = "" if backend.key is None else f"Authorization: Bearer {backend.key}\r\n"
        common = f"Host: localhost\r\n{authorization}"
        self.health_request = (
            f"GET {backend.health_path} HTTP/1.1\r\n{common}Connection: close\r\n\r\n".encode(
                "ascii"
            )
        )
        self._request_heads = {
            route.path: (
                f"{route.method} {route.path} HTTP/1.1\r\n{common}"
                "Accept: application/json, text/event-stream\r\n"
                "Content-Type: application/json\r\n"
                "Content-Length: "
            ).encode("ascii")
            for route in backend.routes
            if (route.path, route.method) in _INFERENCE_ROUTES
        }
        self.pool = BackendPool(backend.channel, self._egress, self.now)
        self.backend = backend
        self.drop_fields = frozenset(name.casefold() for name in backend.drop_fields)
        self._set_policy()

    def detach(self) -> None:
        """Send no more requests; what waits is refused and what runs is broken off."""
        self.backend = None
        self._refuse_waiting()
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        self._set_policy()

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

    def inference_request(self, path: str, body: bytes) -> bytes:
        """Return the request for the backend, built from nothing of the client's but the body."""
        return b"%b%d\r\n\r\n%b" % (self._request_heads[path], len(body), body)

    # --- what each request asks ------------------------------------------------------------

    def gate(self, admission: Verdict) -> Verdict:
        """Return the first refusal of lifecycle, admission and resources."""
        if self.backend is None or self._drained is not None:
            return _NOT_READY
        return gate_request(self._conditions.lifecycle(), admission, self._conditions.resources())

    def models_response(self, *, close: bool) -> bytes:
        """Return the answer to `GET /v1/models`."""
        return self._models[close]

    def retry_after(self, reason: Reason, token: str) -> int:
        """Return in how many seconds whoever showed `token` may send its request again."""
        if reason is Reason.RATE_LIMITED:
            owner = tokens_equal(token, self.settings.token)
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
        """Note a connection; False when there are too many.

        A new one takes the place of the oldest that never showed the token: whoever holds
        connections open cannot keep the owner out.
        """
        connections = self.connections
        if len(connections) >= self.settings.max_connections and self._strangers:
            oldest = next(iter(self._strangers))
            self.connection_closed(oldest)
            oldest.turn_away()
        full = len(connections) >= self.settings.max_connections
        connections.add(connection)
        self._strangers[connection] = None
        self._all_closed.clear()
        if self._sweep is None:
            self._schedule_sweep()
        return not full

    def connection_trusted(self, connection: ClientConnection) -> None:
        """Note that a connection has shown the token."""
        self._strangers.pop(connection, None)

    def connection_closed(self, connection: ClientConnection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self._strangers.pop(connection, None)
        if not self.connections:
            self._all_closed.set()

    def _schedule_sweep(self) -> None:
        self.last_sweep = self.now()
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

    def _set_policy(self) -> None:
        routes = OPENAI_ROUTES if self.backend is None else self.backend.routes
        served = {
            route.path: route.method
            for route in routes
            if (route.path, route.method) in _INFERENCE_ROUTES
        }
        self.policy = guard_policy(
            hosts=self._hosts,
            routes={**served, **_OWN_ROUTES},
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
