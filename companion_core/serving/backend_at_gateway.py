"""The backend of the moment, and its gateway, which is told of it as the start goes on."""

from __future__ import annotations

import asyncio

from companion_core.gateway import Backend, Gateway
from companion_core.providers import HealthChecker
from companion_core.runtime import StartedBackend

__all__ = ["BackendAtGateway"]


class BackendAtGateway:
    """Satisfies `StartListener` for one gateway.

    Args:
        gateway: sends requests to the backend once it is prepared.
        checker: says on which path the backend is asked for its health.

    Attributes:
        backend: the one that was launched last; None when it was taken away.
        has_process: set while there is a process to be observed, ready or not.
    """

    def __init__(self, gateway: Gateway, checker: HealthChecker) -> None:
        self.backend: StartedBackend | None = None
        self.has_process = asyncio.Event()
        self._gateway = gateway
        self._checker = checker

    def launched(self, backend: StartedBackend) -> None:
        """See `StartListener`."""
        self.backend = backend
        self.has_process.set()
        self._gateway.expect(
            Backend(
                channel=backend.channel,
                key=backend.key,
                served_model=backend.served_model,
                health_path=self._checker.path,
                routes=backend.routes,
                drop_fields=backend.drop_fields,
                dialect=backend.dialect,
                context_length=None if backend.facts is None else backend.facts.fit.context,
                modalities=("text",) if backend.facts is None else backend.facts.modalities,
            )
        )

    def connectable(self) -> None:
        """See `StartListener`."""
        self._gateway.connect_expected()

    def not_connectable(self) -> None:
        """See `StartListener`."""
        self._gateway.disconnect_expected()

    def prepared(self) -> None:
        """See `StartListener`."""
        self._gateway.attach_expected()

    def served_model(self) -> str:
        """Return the backend's own name of the model; empty text without a backend."""
        return "" if self.backend is None else self.backend.served_model

    def take_away(self) -> None:
        """Have the gateway send nothing to the backend any more."""
        self._gateway.detach()
        self.backend = None
