"""Rules for this file: decide from four counters whether a request runs, waits or is refused.

Counters outside their own bounds are a fault and admit nothing. A new arrival never overtakes
a request that waits (I-11). Nothing here waits, and nothing is changed in place.

The gateway's queue asks `decide_arrival`, `count_one_more` and `count_one_less` on bare integers;
the known answers and the property tests walk the same rules on snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = [
    "AdmissionSnapshot",
    "count_one_less",
    "count_one_more",
    "create_admission",
    "decide_arrival",
    "evaluate_admission",
    "evaluate_arrival",
    "record_completion",
    "record_dequeued",
    "record_in_flight",
    "record_queued",
]

_MALFORMED = refuse(Reason.MALFORMED_ADMISSION_STATE)
_AT_CAPACITY = refuse(Reason.AT_CAPACITY)
_QUEUE_FULL = refuse(Reason.QUEUE_FULL)


# --- on bare integers: what the gateway asks on each request ------------------------------


def decide_arrival(in_flight: int, max_in_flight: int, queued: int, queue_bound: int) -> Verdict:
    """Decide for a new arrival: it queues after the requests that wait already."""
    if not (0 <= in_flight <= max_in_flight and 0 <= queued <= queue_bound):
        return _MALFORMED
    if in_flight < max_in_flight:
        return _AT_CAPACITY if queued else OK
    return _AT_CAPACITY if queued < queue_bound else _QUEUE_FULL


def count_one_more(count: int, bound: int) -> int:
    """Return the counter with one more request running or waiting.

    Args:
        count: how many run, or wait.
        bound: how many may.

    Raises:
        ValueError: the counter is outside its bounds, or at its upper one.
    """
    if 0 <= count < bound:
        return count + 1
    raise ValueError(Reason.MALFORMED_ADMISSION_STATE.value)


def count_one_less(count: int, bound: int) -> int:
    """Return the counter with one request less running or waiting.

    Args:
        count: how many run, or wait.
        bound: how many may.

    Raises:
        ValueError: the counter is outside its bounds, or zero.
    """
    if 0 < count <= bound:
        return count - 1
    raise ValueError(Reason.MALFORMED_ADMISSION_STATE.value)


# --- on a snapshot: the whole state at once, judged before it is believed -----------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSnapshot:
    """How many requests run and wait, and how many may."""

    in_flight: int
    max_in_flight: int
    queued: int
    queue_bound: int


def _consistent(state: object) -> TypeGuard[AdmissionSnapshot]:
    if not isinstance(state, AdmissionSnapshot):
        return False
    counters = (state.in_flight, state.max_in_flight, state.queued, state.queue_bound)
    return (
        {type(counter) for counter in counters} == {int}  # a bool is no count
        and 0 <= state.in_flight <= state.max_in_flight
        and 0 <= state.queued <= state.queue_bound
        and state.max_in_flight > 0
        and state.queue_bound > 0
    )


def create_admission(max_in_flight: Any, queue_bound: Any) -> AdmissionSnapshot:
    """Return the counters of an idle gateway.

    Raises:
        ValueError: a bound is not a positive integer.
    """
    state = AdmissionSnapshot(
        in_flight=0, max_in_flight=max_in_flight, queued=0, queue_bound=queue_bound
    )
    return _checked(state)


def evaluate_admission(state: object) -> Verdict:
    """Decide for the request at the head of the queue; `at_capacity` means that it waits."""
    if not _consistent(state):
        return _MALFORMED
    if state.in_flight < state.max_in_flight:
        return OK
    return _AT_CAPACITY if state.queued < state.queue_bound else _QUEUE_FULL


def evaluate_arrival(state: object) -> Verdict:
    """Decide for a request that has just arrived, as `decide_arrival` does."""
    if not _consistent(state):
        return _MALFORMED
    return decide_arrival(state.in_flight, state.max_in_flight, state.queued, state.queue_bound)


# The four steps of the gateway's queue, on a snapshot.


def record_in_flight(state: Any) -> AdmissionSnapshot:
    """Return the counters with one more request running; raise `ValueError` beyond the bound."""
    before = _checked(state)
    return replace(before, in_flight=count_one_more(before.in_flight, before.max_in_flight))


def record_completion(state: Any) -> AdmissionSnapshot:
    """Return the counters with one request less running; raise `ValueError` when none runs."""
    before = _checked(state)
    return replace(before, in_flight=count_one_less(before.in_flight, before.max_in_flight))


def record_queued(state: Any) -> AdmissionSnapshot:
    """Return the counters with one more request waiting; raise `ValueError` beyond the bound."""
    before = _checked(state)
    return replace(before, queued=count_one_more(before.queued, before.queue_bound))


def record_dequeued(state: Any) -> AdmissionSnapshot:
    """Return the counters with one request less waiting; raise `ValueError` when none waits."""
    before = _checked(state)
    return replace(before, queued=count_one_less(before.queued, before.queue_bound))


def _checked(state: Any) -> AdmissionSnapshot:
    if not _consistent(state):
        raise ValueError(Reason.MALFORMED_ADMISSION_STATE.value)
    return state
