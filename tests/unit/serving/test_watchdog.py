"""What upkeep does about a runtime that the kernel ended at its ceiling (I-12)."""

from __future__ import annotations

import asyncio

import pytest

from companion_core.decisions import restart
from companion_core.decisions.restart import Ending, Size
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.serving.watchdog import (
    Timing,
    Watchdog,
)

pytestmark = pytest.mark.unit

TIMING = Timing(health_interval=60)


class Served:
    """Ends again and again, each time as told."""

    def __init__(self, reason: Reason, size: Size) -> None:
        self.exited = asyncio.Event()
        self.exited.set()
        self.size = size
        self.last_ending = Ending(reason=reason, exit_code=-9, ready=True)
        self.sizes: list[Size] = []
        self.stops = 0

    async def restart(self) -> None:
        self.sizes.append(self.size)

    async def stop(self) -> None:
        self.stops += 1


def test_it_is_started_smaller_until_there_is_no_smaller() -> None:
    async def life() -> Served:
        served = Served(Reason.RAM_OVER_LIMIT, Size(parallel=2, context_length=1024))
        upkeep = Watchdog(served, TIMING)
        await upkeep.run()
        assert upkeep.gave_up is Reason.RAM_OVER_LIMIT
        return served

    served = asyncio.run(life())
    assert served.sizes == [
        Size(parallel=1, context_length=1024),
        Size(parallel=1, context_length=512),
    ]
    assert served.stops == 3


class Starting(Served):
    """Ended once, while it served; then each start ends as told, and the one behind it serves."""

    def __init__(self, size: Size, *ends: Reason) -> None:
        super().__init__(Reason.RUNTIME_EXITED, size)
        self.ends = list(ends)
        self.serves = asyncio.Event()

    async def restart(self) -> None:
        await super().restart()
        if self.ends:
            reason = self.ends.pop(0)
            self.last_ending = Ending(reason=reason, exit_code=-9, ready=False)
            raise EnvironmentUnavailable(reason)
        self.exited.clear()
        self.serves.set()


def lived(served: Starting) -> tuple[list[Size], Reason | None]:
    """Return how large it was started, until it served or was given up, and why that was."""

    async def life() -> tuple[list[Size], Reason | None]:
        upkeep = Watchdog(served, TIMING)
        watching = asyncio.ensure_future(upkeep.run())
        serving = asyncio.ensure_future(served.serves.wait())
        await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, serving):
            task.cancel()
        await asyncio.wait({watching, serving})
        return served.sizes, upkeep.gave_up

    return asyncio.run(life())


@pytest.fixture
def at_once(monkeypatch):
    """No wait before another start, which is counted."""
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr("companion_core.serving.watchdog.asyncio.sleep", sleep)
    return waits


LARGE, HALF, SHORT = (
    Size(parallel=parallel, context_length=length)
    for parallel, length in ((2, 1024), (1, 1024), (1, 512))
)


def test_a_start_that_the_kernel_ends_at_its_ceiling_is_made_smaller_at_once(at_once) -> None:
    served = Starting(LARGE, Reason.RAM_OVER_LIMIT, Reason.RAM_OVER_LIMIT)
    assert lived(served) == ([LARGE, HALF, SHORT], None)
    assert at_once == [restart.DELAYS_SECONDS[0]]  # behind the end that was not for memory


def test_one_that_cannot_be_made_smaller_is_refused_at_once(at_once) -> None:
    served = Starting(SHORT, Reason.RAM_OVER_LIMIT)
    assert lived(served) == ([SHORT], Reason.RAM_OVER_LIMIT)
    assert at_once == [restart.DELAYS_SECONDS[0]]


def test_a_smaller_start_that_ends_otherwise_is_tried_again_as_large(at_once) -> None:
    served = Starting(LARGE, Reason.RAM_OVER_LIMIT, Reason.RUNTIME_EXITED)
    assert lived(served) == ([LARGE, HALF, HALF], None)
    assert at_once == list(restart.DELAYS_SECONDS[:2])
