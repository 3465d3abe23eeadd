from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.lifecycle import (
    TRANSITIONS,
    Event,
    State,
    can_serve_inference,
    transition,
)
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

# The table of ARCHITECTURE and mission, written out once more by hand: a change of the one
# in the code has to be made here too, on purpose.
EXPECTED = {
    "stopped": {"start": "starting"},
    "starting": {
        "health_ok": "ready",
        "health_fail": "stopped",
        "exited": "stopped",
        "aborted": "stopped",
    },
    "ready": {"drain": "draining", "exited": "stopped"},
    "draining": {"stopped": "stopped", "exited": "stopped"},
}

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
    st.sampled_from([*State, *Event]),
    st.sampled_from([state.value for state in State]),
    st.sampled_from([event.value for event in Event]),
)


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_state_and_event(state: State, event: Event) -> None:
    moved = transition(state, event)
    target = EXPECTED[state].get(event)
    if target is None:
        assert moved == transition(state.value, event.value)
        assert not moved.ok
        assert moved.reason is Reason.INVALID_TRANSITION
        assert moved.state is state, "a refused event changes nothing"
    else:
        assert moved.ok
        assert moved.reason is Reason.OK
        assert moved.state is State(target)


def test_the_table_is_the_expected_one_and_cannot_be_changed() -> None:
    pairs = {(s, e): t for s, events in EXPECTED.items() for e, t in events.items()}
    assert pairs == dict(TRANSITIONS)
    with pytest.raises(TypeError):
        TRANSITIONS[State.STOPPED, Event.DRAIN] = State.READY  # type: ignore[index]  # the table is read-only
    with pytest.raises(dataclasses.FrozenInstanceError):
        transition("stopped", "start").ok = False  # type: ignore[misc]  # the value is frozen


def test_only_ready_serves() -> None:
    assert [state for state in State if can_serve_inference(state)] == [State.READY]


@pytest.mark.parametrize("state", ["READY", "ready ", "", None, True, 1, ["ready"], b"ready"])
def test_nothing_that_looks_like_ready_serves(state: object) -> None:
    assert not can_serve_inference(state)


@pytest.mark.parametrize("event", ["crash", "kill", "stop", "START", " start"])
@pytest.mark.parametrize("state", State)
def test_other_names_are_no_events(state: State, event: str) -> None:
    assert transition(state, event).reason is Reason.INVALID_TRANSITION


@pytest.mark.parametrize("event", [None, "", 0, True, ["start"], b"start"])
def test_an_event_that_is_no_name_is_unknown(event: object) -> None:
    moved = transition("ready", event)
    assert (moved.ok, moved.state, moved.reason) == (False, State.READY, Reason.UNKNOWN_EVENT)


@pytest.mark.parametrize("state", [None, 5, ["ready"], {"state": "ready"}, b"ready"])
def test_a_state_that_is_no_name_is_unknown_before_the_event_is_looked_at(state: object) -> None:
    moved = transition(state, "")
    assert (moved.ok, moved.state, moved.reason) == (False, State.STOPPED, Reason.UNKNOWN_STATE)


def test_an_unknown_name_of_a_state_counts_as_stopped() -> None:
    moved = transition("running", "drain")
    assert (moved.ok, moved.state, moved.reason) == (False, State.STOPPED, Reason.UNKNOWN_STATE)
    moved = transition("running", None)
    assert (moved.ok, moved.state, moved.reason) == (False, State.STOPPED, Reason.UNKNOWN_EVENT)


@given(ANYTHING, ANYTHING)
def test_total_deterministic_and_closed(state: object, event: object) -> None:
    moved = transition(state, event)
    assert moved is transition(state, event), "answers are made once"
    assert isinstance(moved.state, State)
    assert isinstance(moved.reason, Reason)
    assert moved.ok == (moved.reason is Reason.OK)
    if moved.ok:
        assert TRANSITIONS[State(state), Event(event)] is moved.state
    assert can_serve_inference(state) == (state == "ready" and isinstance(state, str))


@given(st.lists(st.sampled_from([*Event, "bogus", None])))
def test_ready_is_reached_only_through_a_good_health_answer(events: list[object]) -> None:
    state = State.STOPPED
    for event in events:
        before, state = state, transition(state, event).state
        if state is State.READY and before is not State.READY:
            assert (before, event) == (State.STARTING, Event.HEALTH_OK)
