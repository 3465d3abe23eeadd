"""What the parts of one gateway share, and what each request asks of it.

`Gateway` makes it and changes what belongs to the backend of the moment; connections and
exchanges read it. It imports none of the three.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from companion_core.decisions.guard import HEALTH_PATH, RateBudgets, guard_policy, tokens_equal
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.request_gate import gate_request
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason, UsageError
from companion_core.gateway.backend_requests import BackendRequests, served_routes
from companion_core.gateway.clients import Clients
from companion_core.gateway.connections import ConnectionTable
from companion_core.gateway.held_bodies import HeldBodies
from companion_core.gateway.http.head import RequestHead
from companion_core.gateway.http.responses import error_response, json_response, without_body
from companion_core.gateway.http.second_parser import head_parser
from companion_core.gateway.metrics import RequestMetrics
from companion_core.gateway.queue import AdmissionQueue
from companion_core.gateway.settings import Backend, GatewaySettings, ServingConditions
from companion_core.gateway.slices import Slices
from companion_core.gateway.upstream import BackendPool
from companion_core.providers import INFERENCE_ROUTES, OPENAI_ROUTES, Route

__all__ = ["GatewayContext", "HeldCheck"]

MODELS_PATH: Final = "/v1/models"
NOT_READY_RETRY_SECONDS: Final = 5

_NOT_READY = refuse(Reason.NOT_READY)
_OWN_ROUTES: Final = {MODELS_PATH: "GET", HEALTH_PATH: "GET"}


class HeldCheck(Protocol):
    """A health check that is held until there is a backend."""

    def relay_held_check(self, now: float) -> None:
        """Send it to the backend that has come."""
        ...


class GatewayContext:
    """What the parts of one gateway share.

    Attributes:
        settings: its limits and deadlines, and the model that requests may name.
        aliases: further names of that model.
        now: its clock, in seconds.
        policy: what the guard compares a request with.
        budgets: how many requests the owner and the strangers may still send.
        queue: which requests run, and which wait.
        metrics: counts every answer.
        clients: programs that have a key of their own.
        bodies: the memory that clients' bodies take.
        checks: reads large bodies.
        connections: every open connection of a client.
        parse_head: reads a request's head.
        requests: writes what is sent to the backend that is attached; None without one.
        pool: the connections to the backend that is attached, or expected.
        held_checks: health checks that wait for a backend, in their order.
        drained: set when nothing runs any more; None while new work is taken.
        more_deadline: for the next part of an answer that is being relayed; as coarse as the
            sweep that renews it.

    Raises:
        UsageError: `secret_invalid` for a token that is too short or no visible ASCII;
            `configuration_invalid` for a bound that is no positive number.
    """

    __slots__ = (
        "_conditions",
        "_models",
        "_not_served",
        "aliases",
        "bodies",
        "budgets",
        "checks",
        "clients",
        "connections",
        "drained",
        "held_checks",
        "metrics",
        "more_deadline",
        "now",
        "parse_head",
        "policy",
        "pool",
        "queue",
        "requests",
        "settings",
    )

    def __init__(
        self,
        settings: GatewaySettings,
        conditions: ServingConditions,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.now = clock
        self._conditions = conditions
        self.metrics = RequestMetrics({**served_routes(INFERENCE_ROUTES), **_OWN_ROUTES})
        self.connections = ConnectionTable(settings.max_connections)
        self.bodies = HeldBodies(settings.max_held_bytes)
        self.checks: Slices[dict[str, Any] | Verdict] = Slices()
        self.parse_head = head_parser(second=settings.second_parser)
        self.requests: BackendRequests | None = None
        self.pool: BackendPool | None = None
        self.held_checks: dict[HeldCheck, None] = {}
        self.drained: asyncio.Event | None = None
        self.more_deadline = clock() + settings.between_bytes_seconds
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
            self.clients = Clients(self.budgets.strangers, settings.requests_per_minute)
        except ValueError as error:
            raise UsageError(Reason.CONFIGURATION_INVALID) from error
        self.set_policy(hosts=(), routes=OPENAI_ROUTES)
        if self.policy.token is None:
            raise UsageError(Reason.SECRET_INVALID)

    # --- what the gateway changes ----------------------------------------------------------

    def name_model(self, model_id: str) -> None:
        """Take requests that name this model, and list no other, from now on."""
        self.settings = replace(self.settings, model_id=model_id)
        meant = self.settings.aliases.items()
        self.aliases = frozenset(name for name, of in meant if of == model_id) - {model_id}
        also = f" (also as {', '.join(sorted(self.aliases))})" if self.aliases else ""
        self._not_served = f"This gateway serves {model_id}{also}; ask for that."
        self._list({})

    def describe_model(self, backend: Backend) -> None:
        """Say of the model what is known since its backend runs."""
        length = backend.context_length
        self._list(
            {
                "context_length": length,
                "max_model_len": length,  # as vLLM names it
                "modalities": list(backend.modalities),
                "state": "ready",
            }
        )

    def _list(self, known: Mapping[str, Any]) -> None:
        model: dict[str, Any] = {"id": self.settings.model_id, "object": "model", "created": 0}
        model |= {"owned_by": "companion", **known}
        if self.aliases:
            model["aliases"] = sorted(self.aliases)
        answers: dict[str, Any] = {MODELS_PATH: {"object": "list", "data": [model]}}
        answers |= dict.fromkeys(self._model_paths, model)
        self._models = {
            (path, close): json_response(200, json.dumps(answer).encode(), close=close)
            for path, answer in answers.items()
            for close in (False, True)
        }

    def set_policy(self, *, hosts: Iterable[str], routes: Iterable[Route]) -> None:
        """Let the guard admit requests to these hosts and, of these routes, the inference ones."""
        self.policy = guard_policy(
            hosts=tuple(hosts),
            routes={
                **served_routes(routes),
                **_OWN_ROUTES,
                **dict.fromkeys(self._model_paths, "GET"),
            },
            token=self.settings.token,
            minimum_token_length=self.settings.minimum_token_length,
        )

    # --- what each request asks ------------------------------------------------------------

    def gate(self, admission: Verdict) -> Verdict | None:
        """Return the first refusal of lifecycle, admission and resources.

        None: that cannot be said before the next observation, see `when_observed`.
        """
        if self.requests is None or self.drained is not None:
            return _NOT_READY
        resources = self._conditions.resources()
        if resources is None:
            verdict = gate_request(self._conditions.lifecycle(), admission, OK)
            return None if verdict.ok else verdict
        return gate_request(self._conditions.lifecycle(), admission, resources)

    def when_observed(self, call: Callable[[], None]) -> None:
        """Call after the next observation of the resources."""
        self._conditions.when_observed(call)

    def gate_arrival(self) -> Verdict | None:
        """Return the first refusal for a request that has just arrived; see `gate`."""
        return self.gate(self.queue.arrival())

    def release_place(self, seconds: float) -> None:
        """Take a place back that was used for so long; the first that waits gets it."""
        waiter = self.queue.release(seconds, self.now())
        if waiter is not None:
            asyncio.get_running_loop().call_soon(waiter.place_is_free)
        elif self.drained is not None and self.queue.in_flight == 0:
            self.drained.set()

    @property
    def _model_paths(self) -> list[str]:
        return [f"{MODELS_PATH}/{name}" for name in (self.settings.model_id, *self.aliases)]

    def models_response(self, path: str, *, close: bool) -> bytes | None:
        """Return the answer to `GET /v1/models`, and to that of the model; None for any other.

        The model may have changed since the guard admitted the path.
        """
        return self._models.get((path, close))

    def refusal(self, reason: Reason, head: RequestHead | None, *, close: bool) -> bytes:
        """Return the answer to a refused request; `head` is None where it was not understood."""
        response = error_response(
            reason,
            close=close,
            retry_after=self._retry_after(reason, "" if head is None else head.token),
            # The guard has passed it, so the client may know what is served.
            message=self._not_served if reason is Reason.MODEL_NOT_SERVED else None,
        )
        return without_body(response) if head is not None and head.method == "HEAD" else response

    def _retry_after(self, reason: Reason, token: str) -> float:
        """Return in how many seconds a client that showed `token` may send its request again."""
        if reason is Reason.RATE_LIMITED:
            client = self.clients.identify(token)
            budgets = self.budgets if client is None else client.budgets
            known = client is not None or tokens_equal(token, self.settings.token.reveal())
            window = budgets.owner if known else budgets.strangers
            return window.seconds_until_free(self.now()) if window else 1.0
        if reason in {Reason.QUEUE_FULL, Reason.QUEUE_DEADLINE}:
            return self.queue.retry_after(self.now())
        return NOT_READY_RETRY_SECONDS
