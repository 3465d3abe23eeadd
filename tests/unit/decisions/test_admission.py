"""Admission: never above its bounds, never an overtaking, and a corrupt state admits nobody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.admission import (
    AdmissionSnapshot,
    count_one_less,
    count_one_more,
    create_admission,
    decide_arrival,
    evaluate_admission,
    evaluate_arrival,
    record_completion,
    record_dequeued,
    record_in_flight,
    record_queued,
)
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

RECORDS = (record_in_flight, record_completion, record_queued, record_dequeued)


def snapshot(in_flight: Any, maximum: Any, queued: Any, bound: Any) -> AdmissionSnapshot:
    return AdmissionSnapshot(
        in_flight=in_flight, max_in_flight=maximum, queued=queued, queue_bound=bound
    )


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.sampled_from(RECORDS), max_size=40))
def test_no_sequence_leaves_the_bounds(maximum: int, bound: int, records: list[Any]) -> None:
    state = create_admission(maximum, bound)
    for record in records:
        before = state
        try:
            state = record(state)
        except ValueError:
            assert state is before
        assert 0 <= state.in_flight <= maximum
        assert 0 <= state.queued <= bound
        assert evaluate_admission(state).ok == (state.in_flight < maximum)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_an_arrival_never_overtakes(maximum: int, bound: int, running: int, queued: int) -> None:
    state = snapshot(min(running, maximum), maximum, min(queued, bound), bound)
    verdict = evaluate_arrival(state)
    assert verdict.ok == (state.in_flight < maximum and state.queued == 0)
    if state.in_flight == maximum:
        full = state.queued == bound
        assert verdict.reason is (Reason.QUEUE_FULL if full else Reason.AT_CAPACITY)


@given(st.integers(-2, 6), st.integers(0, 4))
def test_a_counter_moves_by_one_within_its_bounds(count: int, bound: int) -> None:
    for step, allowed, moved in (
        (count_one_more, 0 <= count < bound, count + 1),
        (count_one_less, 0 < count <= bound, count - 1),
    ):
        if allowed:
            assert step(count, bound) == moved
        else:
            with pytest.raises(ValueError, match=r"^malformed_admission_state$"):
                step(count, bound)


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.sampled_from(["arrive", "leave", "end"])))
def test_bare_counters_move_as_the_snapshot_does(
    maximum: int, bound: int, events: list[str]
) -> None:
    """Walk a queue on integers, as the gateway does, beside one on snapshots."""
    state, running, waiting = create_admission(maximum, bound), 0, 0
    for event in events:
        if event == "arrive":
            verdict = decide_arrival(running, maximum, waiting, bound)
            assert verdict is evaluate_arrival(state)
            if verdict.ok:
                state, running = record_in_flight(state), count_one_more(running, maximum)
            elif verdict.reason is Reason.AT_CAPACITY:
                state, waiting = record_queued(state), count_one_more(waiting, bound)
        elif event == "leave" and waiting:
            state, waiting = record_dequeued(state), count_one_less(waiting, bound)
        elif event == "end" and running and waiting:  # the place goes to the first that waits
            state = record_in_flight(record_dequeued(record_completion(state)))
            waiting = count_one_less(waiting, bound)
        elif event == "end" and running:
            state, running = record_completion(state), count_one_less(running, maximum)
        assert state == snapshot(running, maximum, waiting, bound)


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        snapshot(3, 2, 0, 1),
        snapshot(0, 2, 2, 1),
        snapshot(-1, 2, 0, 1),
        snapshot(0, 0, 0, 1),
        snapshot(0, 1, 0, 0),
        snapshot(in_flight=True, maximum=1, queued=0, bound=1),
        snapshot(0.0, 1, 0, 1),
        snapshot(None, 1, 0, 1),
    ],
)
def test_a_corrupt_state_admits_nobody(state: Any) -> None:
    for evaluate in (evaluate_admission, evaluate_arrival):
        assert evaluate(state).reason is Reason.MALFORMED_ADMISSION_STATE
    for record in RECORDS:
        with pytest.raises(ValueError):
            record(state)
