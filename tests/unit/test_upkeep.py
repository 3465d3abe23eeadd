"""What upkeep does about a runtime that the kernel ended at its ceiling (I-12)."""

from __future__ import annotations

import asyncio

import pytest

from companion_core.decisions.restart import Ending, Size
from companion_core.errors import Reason
from companion_core.upkeep import Timing, Upkeep

pytestmark = pytest.mark.unit

TIMING = Timing(health_interval=60)


class Kept:
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
    async def life() -> Kept:
        kept = Kept(Reason.RAM_OVER_LIMIT, Size(parallel=2, context_length=1024))
        upkeep = Upkeep(kept, TIMING)
        await upkeep.run()
        assert upkeep.gave_up is Reason.RAM_OVER_LIMIT
        return kept

    kept = asyncio.run(life())
    assert kept.sizes == [
        Size(parallel=1, context_length=1024),
        Size(parallel=1, context_length=512),
    ]
    assert kept.stops == 3
