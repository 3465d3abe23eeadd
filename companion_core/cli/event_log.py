"""What a detached companion writes into its log: each event with its time and reason.

A line says nothing else: no model's name, no path and no text of another program (I-15).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from companion_core.errors import Reason
from companion_core.serving.events import Event, EventStream
from companion_core.system.clock import wall_now

__all__ = ["line_of", "log_ending", "log_events"]

_LAST_SECONDS: Final = 2.0  # in which what was told before the end is still written


@contextlib.asynccontextmanager
async def log_events(events: EventStream) -> AsyncIterator[None]:
    """Log events on stderr while the block runs, and the last ones after it."""
    task = asyncio.create_task(_log(events))
    try:
        yield
    finally:
        await asyncio.wait([task], timeout=_LAST_SECONDS)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def log_ending(reason: Reason) -> None:
    """Log why the companion ends."""
    _write(_line(datetime.fromtimestamp(wall_now(), UTC), "ended", reason.value))


def line_of(event: Event) -> str:
    """Return an event as a line of the log; "" for the progress of a long step."""
    if event.is_progress:
        return ""
    step = "" if event.step is None else event.step.name
    reason = "" if event.reason is Reason.OK else event.reason.value
    return _line(event.at, event.kind.value, step or reason)


async def _log(events: EventStream) -> None:
    async for event in events:
        if line := line_of(event):
            _write(line)


def _line(at: datetime, *words: str) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ} companion: {' '.join(filter(None, words))}"


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk ends no companion
        print(line, file=sys.stderr, flush=True)
