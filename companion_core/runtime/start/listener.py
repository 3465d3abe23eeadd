"""What a start tells as it goes on: the backend that it launched, and when to connect to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from companion_core.decisions.isolation import Tier
from companion_core.egress.backend_channel import BackendChannel
from companion_core.providers import Dialect, Route
from companion_core.runtime.isolation import CeilingState
from companion_core.runtime.start.model_facts import ModelFacts
from companion_core.runtime.start.placement import PlacementWatch
from companion_core.system.secret import Secret

__all__ = ["NOBODY", "StartListener", "StartedBackend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedBackend:
    """A runtime that is executed, and how it is reached.

    Attributes:
        channel: how connections to it are made.
        key: sent to it as Bearer, if there is one.
        ceilings: whether the system itself enforces them, and if not, why (I-12).
        ready_by: when its start is over, healthy or not, on the event loop's clock.
        facts: what its model says, and the context that it was planned with.
        placement: where it places the model.
    """

    channel: BackendChannel
    key: Secret | None
    served_model: str
    routes: tuple[Route, ...]
    drop_fields: tuple[str, ...]
    pid: int
    channel_name: Literal["unix", "tcp", "namespace"]
    tier: Tier
    ceilings: CeilingState
    ready_by: float
    dialect: Dialect = field(default_factory=Dialect)
    facts: ModelFacts | None = None
    placement: PlacementWatch | None = None


class StartListener(Protocol):
    """Hears each event of a start at once; the start goes on when the call returns."""

    def launched(self, backend: StartedBackend) -> None:
        """Hear that the runtime's program is executed; nothing may be sent to it yet (I-07)."""
        ...

    def connectable(self) -> None:
        """Hear that a connection may be made; nothing may be sent on it yet.

        The runtime is being read back, or works on the last request of its plan.
        """
        ...

    def not_connectable(self) -> None:
        """Hear that every connection has to be closed.

        The runtime was not found as planned, or gets the last request of its plan again.
        """
        ...

    def prepared(self) -> None:
        """Hear that the runtime may be asked for its health."""
        ...


class _Nobody:
    """Satisfies `StartListener` and does nothing."""

    def launched(self, backend: StartedBackend) -> None:
        """See `StartListener`."""

    def connectable(self) -> None:
        """See `StartListener`."""

    def not_connectable(self) -> None:
        """See `StartListener`."""

    def prepared(self) -> None:
        """See `StartListener`."""


NOBODY: Final[StartListener] = _Nobody()
