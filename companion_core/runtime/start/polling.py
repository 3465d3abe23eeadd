"""When to try again until a runtime is ready: when it does something, else after a pause.

A runtime that becomes ready writes a line or makes its socket, and either wakes the next attempt at
once. Where it becomes ready in silence, the pauses are a small share of that silence, and it is
found late by no more. Where it writes all the time, pauses keep the attempts to a share of the
start's time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

__all__ = ["Polling"]

SHARE: Final = 0.05
BUSY_SHARE: Final = 0.1
BUSY_SECONDS: Final = 0.05
SHORTEST_SECONDS: Final = 0.001
LONGEST_SECONDS: Final = 0.1


class Polling:
    """One series of attempts; needs a running event loop.

    Args:
        activity: set whenever the runtime does something; cleared by `pause`.
    """

    def __init__(self, activity: asyncio.Event) -> None:
        self._activity = activity
        self._now = asyncio.get_running_loop().time
        self._began = self._silent_since = self._resumed = self._now()
        self._busy = 0.0

    async def pause(self) -> None:
        """Return when the next attempt is due."""
        now = self._now()
        self._busy += now - self._resumed
        if self._activity.is_set():  # it did something during the attempt
            await asyncio.sleep(pause_after(self._busy, of=now - self._began))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_pause(self._now() - self._silent_since)):
                await self._activity.wait()
        if self._activity.is_set():
            self._activity.clear()
            self._silent_since = self._now()
        self._resumed = self._now()


def pause_after(busy: float, *, of: float) -> float:
    """Return for how long to wait where attempts took `busy` seconds of the last `of`."""
    return min(max((busy - BUSY_SECONDS) / BUSY_SHARE - of, 0.0), LONGEST_SECONDS)


def longest_pause(silence: float) -> float:
    """Return for how long at most a runtime is not asked that was silent for `silence` seconds."""
    return min(max(SHARE * silence, SHORTEST_SECONDS), LONGEST_SECONDS)
