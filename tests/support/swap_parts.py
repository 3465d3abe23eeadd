"""A model and a serving that only write down what is asked of them, for tests of the swap."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

from companion_core.decisions.isolation import Tier
from companion_core.decisions.placement import Placement
from companion_core.decisions.restart import Size
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.serving.model_source import HeldModel
from companion_core.serving.status import RuntimeStatus

FULL = Size(parallel=2, context_length=1024)
SMALL = Size(parallel=1, context_length=512)


def held_model(name: str, log: list[str]) -> HeldModel:
    """Return a model that is proved; its end is logged."""
    held = HeldModel()
    let_go = f"let go of {name}"
    proof: Any = SimpleNamespace(model_id=name, is_open=True, close=lambda: log.append(let_go))
    held.take_proof(proof)
    return held


class Watchdog:
    """Watches until it is told to give up; then it raises its fault, if it has one."""

    def __init__(self) -> None:
        self.gives_up = asyncio.Event()
        self.fault: Exception | None = None

    async def run(self) -> None:
        await self.gives_up.wait()
        if self.fault is not None:
            raise self.fault


class FakeServing:
    """See `Serving`.

    Attributes:
        log: what was asked of it.
        failing: starts of these models raise that, or never end if it is None.
        busy: a drain waits for what runs.
        too_large: the model that is above a ceiling.
        stopping: set when a stop has begun; it ends when `may_stop` is.
        stops: what the next stops raise, if anything.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failing: dict[str, CompanionError | None] = {}
        self.busy = False
        self.too_large: str | None = None
        self.draining = asyncio.Event()
        self.starting = asyncio.Event()
        self.stopping, self.may_stop = asyncio.Event(), asyncio.Event()
        self.may_stop.set()
        self.stops: deque[Exception | None] = deque()
        self.full_size = self.size = FULL
        self.watchdog = Watchdog()

    def begin_anew(self, size: Size) -> None:
        self.size, self.watchdog = size, Watchdog()

    async def start(self, model: Any) -> None:
        self.log.append(f"start {model.model_id}")
        self.starting.set()
        if model.model_id in self.failing:
            error = self.failing[model.model_id]
            if error is not None:
                raise error
            await asyncio.Event().wait()

    async def drain(self, seconds: float) -> None:
        self.log.append(f"drain {seconds:.0f}")
        self.draining.set()
        if self.busy:
            await asyncio.Event().wait()

    async def require_room_for(self, model: Any) -> None:
        if self.too_large == model.model_id:
            raise EnvironmentUnavailable(Reason.RAM_OVER_LIMIT)

    async def stop(self) -> None:
        self.stopping.set()
        await self.may_stop.wait()
        if self.stops and (error := self.stops.popleft()) is not None:
            raise error
        self.log.append("stop")

    runtime = RuntimeStatus(
        name="n",
        pid=1,
        channel="unix",
        isolation=Tier.NONE,
        ceilings="observed",
        ceilings_detail="",
        placement=Placement.CPU,
        context_length=512,
        model_context_length=1024,
    )
