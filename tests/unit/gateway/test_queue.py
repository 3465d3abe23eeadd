"""The admission queue: first come, first served, within the bounds that the rule sets."""

from __future__ import annotations

from itertools import pairwise

import pytest

from companion_core.errors import Reason
from companion_core.gateway.queue import AdmissionQueue

pytestmark = pytest.mark.unit


class Waiting:
    def place_is_free(self) -> None: ...

    def refuse_waiting(self, reason: Reason) -> None: ...


def queue(max_in_flight: int = 1, queue_bound: int = 3) -> AdmissionQueue:
    return AdmissionQueue(
        max_in_flight=max_in_flight, queue_bound=queue_bound, deadline_seconds=10.0
    )


def test_a_place_goes_to_the_first_that_waits() -> None:
    line, waiters = queue(), [Waiting() for _ in range(3)]
    assert line.arrival().ok
    line.take()
    for waiter in waiters:
        assert line.arrival().reason is Reason.AT_CAPACITY
        line.wait(waiter, 0.0)
    assert line.arrival().reason is Reason.QUEUE_FULL
    line.leave(waiters[1])
    assert line.arrival().reason is Reason.AT_CAPACITY
    assert line.release(1.0, 0.0) is waiters[0]
    assert line.snapshot().in_flight == 1  # handed over, never free in between
    assert line.release(1.0, 0.0) is waiters[2]
    assert line.release(1.0, 0.0) is None
    assert line.snapshot().in_flight == 0


def test_what_waits_too_long_leaves_in_order() -> None:
    line, waiters = queue(), [Waiting() for _ in range(3)]
    line.take()
    for now, waiter in enumerate(waiters):
        line.wait(waiter, float(now))
    assert line.expired(9.9) == []
    assert line.expired(11.0) == waiters[:2]
    assert line.clear() == waiters[2:]
    assert len(line) == 0


def test_retry_after_grows_with_the_queue_and_stays_sensible() -> None:
    line = queue(queue_bound=100)
    line.take()
    for _ in range(200):
        line.release(3.0, 0.0)
        line.take()
    alone = line.retry_after(0.0)
    for _ in range(5):
        line.wait(Waiting(), 0.0)
    assert 1 <= alone < line.retry_after(0.0) <= 60
    for _ in range(90):
        line.wait(Waiting(), 0.0)
    assert line.retry_after(0.0) == 60


def test_each_that_is_refused_gets_a_turn_of_its_own() -> None:
    line = queue(max_in_flight=2)
    line.take()
    for _ in range(100):
        line.release(1.0, 0.0)
        line.take()
    turns = [line.retry_after(10.0) for _ in range(5)]
    gaps = [later - earlier for earlier, later in pairwise(turns)]
    assert all(gap == pytest.approx(0.625, rel=0.01) for gap in gaps)
    assert line.retry_after(40.0) - turns[0] > 25  # for half a minute no place was given back
    line.release(1.0, 0.0)
    line.take()
    assert line.retry_after(100.0) == pytest.approx(turns[0])  # the turns have passed


def test_bounds_that_are_not_positive_are_refused() -> None:
    for bounds in ((0, 1), (1, 0)):
        with pytest.raises(ValueError):
            queue(*bounds)


def test_a_count_that_the_rule_refuses_changes_nothing() -> None:
    line = queue(max_in_flight=1, queue_bound=1)
    with pytest.raises(ValueError):
        line.release(1.0, 0.0)
    line.take()
    with pytest.raises(ValueError):
        line.take()
    line.wait(Waiting(), 0.0)
    with pytest.raises(ValueError):
        line.wait(Waiting(), 0.0)
    assert (line.snapshot().in_flight, line.snapshot().queued) == (1, 1)
