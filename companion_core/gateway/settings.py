"""What a gateway is told: limits, deadlines and a backend; and what it asks per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from companion_core.decisions.guard import MINIMUM_TOKEN_LENGTH
from companion_core.decisions.verdict import Verdict
from companion_core.egress.backend_channel import BackendChannel
from companion_core.providers import OPENAI_ROUTES, Dialect, Route
from companion_core.system.secret import Secret

__all__ = ["Backend", "GatewaySettings", "ServingConditions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Limits and deadlines.

    Attributes:
        token: the session's token; at least `minimum_token_length` bytes.
        model_id: the only model that requests may name.
        aliases: further names of models; those of the one that is served count as its own.
        port: 0 lets the system choose.
        requests_per_minute: of the owner.
        strangers_per_minute: of all clients that do not show the token, together.
        max_in_flight: requests that the backend works on at once.
        queue_bound: requests that may wait.
        queue_deadline_seconds: how long a request may wait.
        max_body_bytes: of a request.
        max_held_bytes: of bodies that came in parts, all together, before they are sent on.
        max_connections: well below the limit of open files; beyond it a new connection takes
            the place of the oldest that never showed the token.
        accepted_at_once: connections that each listener accepts before any of them is looked at:
            together with those that are open they must stay below that limit too.
        head_seconds: for a whole head, and for a connection that never showed the token.
        body_seconds: for a whole body.
        connect_seconds: for a connection to the backend.
        first_byte_seconds: until the first byte of the answer's body. Without streaming, the
            model does all its work before it, however long that takes on a slow machine; a client
            that would not wait as long leaves, which ends the work.
        between_bytes_seconds: between any two parts of a body that has begun. A stream is silent
            while the runtime reads another request's long prompt.
        heartbeat_seconds: longest silence of a stream; 0 leaves it silent.
        stall_seconds: how long a client may leave its answer unread.
        idle_seconds: between two requests of a client that showed the token.
        health_seconds: for the backend's answer to a health check.
        hold_seconds: how long a health check that prefers to wait is held for a backend.
        second_parser: let llhttp read each new head too, where `httptools` is installed.
        minimum_token_length: in bytes. Benchmarks lower it; the companion never does.
    """

    token: Secret
    model_id: str
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    port: int = 0
    requests_per_minute: int = 600
    strangers_per_minute: int = 60
    max_in_flight: int = 2
    queue_bound: int = 16
    queue_deadline_seconds: float = 30
    max_body_bytes: int = 10 * 2**20
    max_held_bytes: int = 64 * 2**20
    max_connections: int = 512
    accepted_at_once: int = 64
    head_seconds: float = 10
    body_seconds: float = 30
    connect_seconds: float = 5
    first_byte_seconds: float = 3600
    between_bytes_seconds: float = 600
    heartbeat_seconds: float = 0
    stall_seconds: float = 30
    idle_seconds: float = 75
    health_seconds: float = 5
    hold_seconds: float = 600
    second_parser: bool = True
    minimum_token_length: int = MINIMUM_TOKEN_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A started runtime, as the gateway reaches it.

    Attributes:
        channel: where it listens.
        served_model: the name that it expects in request bodies.
        health_path: what `GET /-/health` is relayed to.
        key: the per-start key that it demands, if any.
        routes: what it serves; only `INFERENCE_ROUTES` among them are passed on.
        drop_fields: request fields that are removed, whatever their case.
        dialect: where its API differs from OpenAI's.
        context_length: tokens of context for each request; None if the runtime chooses.
        modalities: of what a request may hold.
    """

    channel: BackendChannel
    served_model: str
    health_path: str
    key: Secret | None = None
    routes: tuple[Route, ...] = OPENAI_ROUTES
    drop_fields: tuple[str, ...] = ()
    dialect: Dialect = field(default_factory=Dialect)
    context_length: int | None = None
    modalities: tuple[str, ...] = ("text",)


class ServingConditions(Protocol):
    """What the companion tells the gateway; each answer takes constant time."""

    def lifecycle(self) -> Verdict:
        """Say whether the runtime is ready."""
        ...

    def resources(self) -> Verdict | None:
        """Say whether the last observation is within the limits; None: it is too old to say."""
        ...

    def when_observed(self, call: Callable[[], None]) -> None:
        """Call once, from the event loop, after the next observation."""
        ...
