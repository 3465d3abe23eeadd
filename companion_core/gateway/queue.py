"""The admission queue: bounded, first come first served, with a deadline (I-11).

A waiter leaves when its place is free, when its deadline passes or when its client goes; its
place is free at once. Nothing here blocks: a waiter is called back. What is counted, and what a
count allows, is decided by the rules of `decisions/admission.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

from companion_core.decisions.admission import (
    AdmissionSnapshot,
    count_one_less,
    count_one_more,
    create_admission,
    decide_arrival,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

__all__ = ["AdmissionQueue", "Waiter"]

_SMOOTHING: Final = 0.2
# What a place is taken for, as long as none was given back.
_FIRST_GUESS_SECONDS: Final = 0.05
# Those who are asked to come later come at a slower pace than the places are free at.
_MARGIN: Final = 1.25
# Clients of OpenAI and Anthropic heed no longer one.
_LONGEST_RETRY_AFTER: Final = 60.0


class Waiter(Protocol):
    """A request that waits for a place."""

    def place_is_free(self) -> None:
        """Use the place; it counts as taken already."""
        ...

    def refuse_waiting(self, reason: Reason) -> None:
        """End the wait with a refusal; no place was taken."""
        ...


class AdmissionQueue:
    """Counts what runs and holds what waits.

    Every method that changes a count raises `ValueError` where the rule refuses the change.

    Attributes:
        in_flight: how many requests run.

    Raises:
        ValueError: a bound is not a positive integer.
    """

    __slots__ = (
        "_deadline_seconds",
        "_last_release",
        "_last_turn",
        "_max_in_flight",
        "_mean_gap",
        "_mean_seconds",
        "_queue_bound",
        "_refused_since",
        "_waiting",
        "in_flight",
    )

    def __init__(self, *, max_in_flight: int, queue_bound: int, deadline_seconds: float) -> None:
        create_admission(max_in_flight, queue_bound)  # refuses bounds that are not positive
        self._max_in_flight = max_in_flight
        self._queue_bound = queue_bound
        self._deadline_seconds = deadline_seconds
        self._mean_seconds = _FIRST_GUESS_SECONDS
        self._mean_gap = 0.0  # between two places given back while others wait
        self._last_release: float | None = None  # the last one, if another waited then
        self._last_turn = 0.0  # of all that were asked to come again
        self._refused_since: float | None = None  # no place was given back since then
        self._waiting: OrderedDict[Waiter, float] = OrderedDict()
        self.in_flight = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def snapshot(self) -> AdmissionSnapshot:
        """Return the counters as a value."""
        return AdmissionSnapshot(
            in_flight=self.in_flight,
            max_in_flight=self._max_in_flight,
            queued=len(self._waiting),
            queue_bound=self._queue_bound,
        )

    def arrival(self) -> Verdict:
        """Decide for a request that has just arrived; nothing is taken yet."""
        return decide_arrival(
            self.in_flight, self._max_in_flight, len(self._waiting), self._queue_bound
        )

    def take(self) -> None:
        """Take the place that `arrival` granted."""
        self.in_flight = count_one_more(self.in_flight, self._max_in_flight)

    def wait(self, waiter: Waiter, now: float) -> None:
        """Join the end of the queue."""
        count_one_more(len(self._waiting), self._queue_bound)
        self._waiting[waiter] = now + self._deadline_seconds

    def leave(self, waiter: Waiter) -> None:
        """Give up waiting; harmless when not waiting."""
        self._waiting.pop(waiter, None)

    def release(self, seconds: float, now: float) -> Waiter | None:
        """Give a place back; the first request that waits gets it, and is returned.

        Args:
            seconds: how long the place was used, for `retry_after`.
            now: on the gateway's clock.
        """
        if self._last_release is not None:
            self._mean_gap += _SMOOTHING * (now - self._last_release - self._mean_gap)
        self._last_release = now if self._waiting else None
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)
        self._refused_since = None
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        self.in_flight = count_one_less(self.in_flight, self._max_in_flight)
        return None

    def expired(self, now: float) -> list[Waiter]:
        """Remove and return what has waited too long."""
        late = []
        while self._waiting:
            waiter, deadline = next(iter(self._waiting.items()))
            if deadline > now:
                break
            late.append(waiter)
            del self._waiting[waiter]
        return late

    def clear(self) -> list[Waiter]:
        """Remove and return all that wait."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def retry_after(self, now: float) -> float:
        """Return in how many seconds a refused request should come again.

        Each gets a turn of its own, one after the other, at the pace of the recent requests: all of
        them at once would find no more room than now. Where no place is given back for longer than
        that, the pace is as slow.
        """
        if self._refused_since is None:
            self._refused_since = now
        stalled = now - self._refused_since
        gap = _MARGIN * max(self._mean_seconds / self._max_in_flight, self._mean_gap)
        gap = max(gap, stalled)
        first = now + gap * (len(self._waiting) + 1)
        self._last_turn = turn = min(max(self._last_turn + gap, first), now + _LONGEST_RETRY_AFTER)
        return turn - now
