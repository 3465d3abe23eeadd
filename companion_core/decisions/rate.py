"""Rules for this file: how many requests fit into a sliding window; the caller brings the time.

A malformed bound, stamp or time never means "fits" (I-16). No clock and no I/O; a window is
the one value in this folder that changes in place, so that checking and counting are one step.

The guard calls `take`. Only the known answers of `tests/vectors` ask `check_rate` and
`restore_rate_window`, which judge a window that arrives as data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["LONGEST_WINDOW_STAMPS", "RateWindow", "check_rate", "restore_rate_window"]

LONGEST_WINDOW_STAMPS: Final = 4096

_NO_RATE_STATE = refuse(Reason.RATE_STATE_UNAVAILABLE)
_RATE_LIMITED = refuse(Reason.RATE_LIMITED)


class RateWindow:
    """A sliding window: at most `max_requests` in any `window`, in the unit of the clock.

    Each stamp is stored and dropped once, so a request costs amortised constant time. A clock
    that steps back keeps the stamps: it can only refuse more.

    Raises:
        ValueError: a bound is not positive, or a stamp is not a finite number.
    """

    __slots__ = ("_sorted", "_stamps", "max_requests", "window")

    def __init__(
        self, window: Any = 60.0, max_requests: Any = 60, stamps: Iterable[Any] = ()
    ) -> None:
        if not is_finite(window) or window <= 0:
            raise ValueError("window")
        if type(max_requests) is not int or max_requests <= 0:
            raise ValueError("max_requests")
        self.window: float = window
        self.max_requests: int = max_requests
        self._stamps: deque[float] = deque(stamps)
        if not all(map(is_finite, self._stamps)):
            raise ValueError("stamps")
        self._sorted = list(self._stamps) == sorted(self._stamps)

    @classmethod
    def per_minute(cls, requests: int) -> RateWindow:
        """Return a window for a budget per minute.

        A large budget is counted over a proportionally shorter window: that bounds the memory
        and never allows more per minute.
        """
        if requests <= LONGEST_WINDOW_STAMPS:
            return cls(60.0, requests)
        return cls(60.0 * LONGEST_WINDOW_STAMPS / requests, LONGEST_WINDOW_STAMPS)

    @property
    def stamps(self) -> tuple[float, ...]:
        """The times of the requests that are still remembered."""
        return tuple(self._stamps)

    def check(self, now: Any) -> Verdict:
        """Say whether one more request fits at `now`."""
        if not is_finite(now):
            return _NO_RATE_STATE
        self._expire(now)
        return OK if len(self._stamps) < self.max_requests else _RATE_LIMITED

    def record(self, now: Any) -> None:
        """Remember a request; a full window forgets its oldest and stays bounded."""
        if not is_finite(now):
            raise ValueError("now")
        self._expire(now)
        self._remember(now)
        while len(self._stamps) > self.max_requests:
            self._stamps.popleft()

    def take(self, now: Any) -> Verdict:
        """Check and, if it fits, remember: one step, so that two callers cannot overshoot."""
        if not is_finite(now):
            return _NO_RATE_STATE
        stamps = self._stamps
        if not self._sorted or (stamps and stamps[0] <= now - self.window):
            self._expire(now)
            stamps = self._stamps
        if len(stamps) >= self.max_requests:
            return _RATE_LIMITED
        if stamps and stamps[-1] > now:
            self._sorted = False
        stamps.append(now)
        return OK

    def _remember(self, now: float) -> None:
        stamps = self._stamps
        if stamps and stamps[-1] > now:
            self._sorted = False
        stamps.append(now)

    def seconds_until_free(self, now: float) -> float:
        """Return how long until one more request fits, in the unit of the clock."""
        if len(self._stamps) < self.max_requests:
            return 0.0
        oldest = self._stamps[0] if self._sorted else min(self._stamps)
        return max(0.0, oldest + self.window - now)

    def _expire(self, now: float) -> None:
        horizon = now - self.window
        stamps = self._stamps
        if not self._sorted:
            self._stamps = deque(stamp for stamp in stamps if stamp > horizon)
            self._sorted = list(self._stamps) == sorted(self._stamps)
            return
        while stamps and stamps[0] <= horizon:
            stamps.popleft()


def check_rate(window: RateWindow | None, now: object) -> Verdict:
    """Say whether one more request fits; without a window none does (I-16)."""
    return _NO_RATE_STATE if window is None else window.check(now)


def restore_rate_window(window: Any, max_requests: Any, stamps: object) -> RateWindow | None:
    """Return a window with a known past, or None when any part of it is malformed."""
    if not isinstance(stamps, list | tuple):
        return None
    try:
        return RateWindow(window, max_requests, stamps)
    except ValueError:
        return None
