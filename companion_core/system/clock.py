"""The product's two clocks: one for recency, which counts sleep, and one for dates (I-18)."""

from __future__ import annotations

import sys
import time

__all__ = ["recency_now", "wall_now"]

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def recency_now() -> float:
    """Return seconds on a clock that never steps and, if the system has one, counts sleep."""
    if sys.platform == "win32" or _BOOTTIME is None:
        return time.monotonic()
    return time.clock_gettime(_BOOTTIME)


def wall_now() -> float:
    """Return seconds since the epoch by the machine's clock, which may be wrong."""
    return time.time()
