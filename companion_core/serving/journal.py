"""What happened, written down for `companion logs`: each event with its time and reason.

Every companion writes it, detached or not. A full disk ends no companion.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from companion_core.errors import Reason
from companion_core.serving.events import Event
from companion_core.serving.record import Record
from companion_core.system.bounded_log import MAX_LOG_BYTES, open_log
from companion_core.system.clock import wall_now

__all__ = ["Journal", "watch_refusals"]

# Refusals are written together, so that a client that asks all the time fills no disk.
REFUSALS_SECONDS: Final = 5.0

Refusals = Mapping[tuple[str, Reason], int]
Sleep = Callable[[float], Awaitable[object]]


class Journal:
    """One companion's log.

    Args:
        path: of the log.
        clock: the wall clock, in seconds since the epoch.
        max_bytes: size of a full log.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = wall_now,
        max_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        self._path = path
        self._clock = clock
        self._max_bytes = max_bytes

    def note(self, event: Event) -> None:
        """Write an event down; the progress of a long step is none."""
        if not event.is_progress:
            step = "" if event.step is None else event.step.name
            self._write(Record(at=event.at, event=event.kind.value, reason=event.reason, step=step))

    def ended(self, reason: Reason) -> None:
        """Write down why the companion ended, or did not start."""
        self._write(Record(at=self._now(), event="ended", reason=reason))

    def refused(self, refusals: Refusals) -> None:
        """Write down how many requests were refused, by client and reason."""
        now = self._now()
        for (client, reason), count in sorted(refusals.items()):
            self._write(Record(at=now, event="refused", reason=reason, client=client, count=count))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _write(self, record: Record) -> None:
        with contextlib.suppress(OSError):
            descriptor = open_log(self._path, self._max_bytes)
            try:
                os.write(descriptor, f"{record.line()}\n".encode())
            finally:
                os.close(descriptor)


async def watch_refusals(
    refusals: Callable[[], Refusals], journal: Journal, *, sleep: Sleep = asyncio.sleep
) -> None:
    """Write down what is refused until cancelled, and then what was refused until the end.

    Args:
        refusals: how many requests were refused so far, by client and reason.
        journal: takes them.
        sleep: waits so many seconds.
    """
    seen = Counter(refusals())
    try:
        while True:
            await sleep(REFUSALS_SECONDS)
            now = Counter(refusals())
            journal.refused(now - seen)
            seen = now
    finally:
        journal.refused(Counter(refusals()) - seen)
