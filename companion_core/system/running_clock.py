"""Time in which this process ran: what it was stopped or asleep for is nobody else's silence.

A process that was suspended (a closed lid, SIGSTOP) or held up finds, when it goes on, that every
deadline has passed, although nobody it waits for had a chance to be heard.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from companion_core.system.clock import recency_now

__all__ = ["RunningClock", "running_timeout"]

LONGEST_STEP_SECONDS: Final = 1.0  # twice what the gateway's sweep takes from one tick to the next
_SLICES: Final = 4
_LONGEST_SLICE: Final = 0.25
_LATE_SECONDS: Final = 0.1
# A machine that is always late must not keep a deadline off for ever.
_MOST_FORGIVEN: Final = 8


class RunningClock:
    """Seconds that never step back; between two calls of `tick` they advance by one at most.

    Args:
        clock: counts sleep.
    """

    __slots__ = ("_clock", "_limit", "_lost")

    def __init__(self, clock: Callable[[], float] = recency_now) -> None:
        self._clock = clock
        self._lost = 0.0
        self._limit = clock() + LONGEST_STEP_SECONDS

    def __call__(self) -> float:
        """Return the time now."""
        now = self._clock() - self._lost
        return now if now < self._limit else self._limit  # noqa: FURB136 - asked per request

    def tick(self) -> None:
        """Note that the process runs; called twice in `LONGEST_STEP_SECONDS`."""
        now = self()
        self._lost = self._clock() - now
        self._limit = now + LONGEST_STEP_SECONDS


@contextlib.asynccontextmanager
async def running_timeout(seconds: float) -> AsyncIterator[None]:
    """Do what `asyncio.timeout` does, but count no part of the time in which the loop stood still.

    After a standstill there is always one more slice, in which an answer that has come meanwhile
    is taken.

    Raises:
        TimeoutError: the time is over.
    """
    import asyncio  # noqa: PLC0415 - loaded on first use

    loop = asyncio.get_running_loop()
    part = min(_LONGEST_SLICE, seconds / _SLICES)
    left, forgiven = seconds, 0
    handle: asyncio.TimerHandle | None = None

    def look(due: float) -> None:
        nonlocal handle, left, forgiven
        if loop.time() - due > _LATE_SECONDS and forgiven < _MOST_FORGIVEN:
            forgiven += 1
        else:
            left -= part
        if left <= part / 2:
            limit.reschedule(loop.time())
        else:
            handle = loop.call_later(part, look, loop.time() + part)

    async with asyncio.timeout(None) as limit:
        handle = loop.call_later(part, look, loop.time() + part)
        try:
            yield
        finally:
            if handle is not None:
                handle.cancel()
