"""What the gateway is told as a start goes on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.decisions.isolation import Tier
from companion_core.gateway import Backend
from companion_core.providers import UnixChannel
from companion_core.runtime import StartedBackend
from companion_core.runtime.isolation import CeilingState
from companion_core.serving.backend_at_gateway import BackendAtGateway

pytestmark = pytest.mark.unit

STARTED = StartedBackend(
    channel=UnixChannel(path="/run/it.sock"),
    key="k" * 43,
    served_model="it",
    routes=(),
    drop_fields=("user",),
    pid=1,
    channel_name="unix",
    tier=Tier.NONE,
    ceilings=CeilingState(hard=False, detail=""),
    ready_by=0.0,
)


class Told:
    """Notes what a gateway is told."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *what: self.log.append((name, *what))


def test_each_event_of_a_start_reaches_the_gateway() -> None:
    async def life() -> list[Any]:
        told: Any = Told()
        current = BackendAtGateway(told, SimpleNamespace(path="/health"))
        assert (current.backend, current.served_model()) == (None, "")
        assert not current.has_process.is_set()
        current.launched(STARTED)
        assert (current.backend, current.served_model()) == (STARTED, "it")
        assert current.has_process.is_set()
        current.connectable()
        current.not_connectable()
        current.prepared()
        current.take_away()
        assert current.backend is None
        return told.log

    (first, expected), *rest = asyncio.run(life())
    assert first == "expect"
    assert expected == Backend(
        channel=STARTED.channel,
        key=STARTED.key,
        served_model="it",
        health_path="/health",
        routes=(),
        drop_fields=("user",),
    )
    names = ["connect_expected", "disconnect_expected", "attach_expected", "detach"]
    assert [name for (name,) in rest] == names
