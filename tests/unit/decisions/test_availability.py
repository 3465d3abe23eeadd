from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.availability import (
    RECENCY_SECONDS,
    AvailabilityFacts,
    evaluate_availability,
)
from companion_core.decisions.lifecycle import State
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

GOOD = AvailabilityFacts(
    verified=True,
    state=State.READY,
    listener_bound=True,
    token_stored=True,
    last_health_ok=100.0,
    now=105.0,
)

# In the order in which they are judged: a change that fails, and its reason.
FAILURES: list[tuple[dict[str, Any], Reason]] = [
    ({"verified": False}, Reason.NOT_VERIFIED),
    ({"state": State.DRAINING}, Reason.NOT_READY),
    ({"listener_bound": False}, Reason.LISTENER_NOT_BOUND),
    ({"token_stored": False}, Reason.TOKEN_NOT_STORED),
    ({"last_health_ok": None}, Reason.HEALTH_STALE),
]

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from([10**400, -(10**400), "ready", State.READY, [], {}]),
)


def judge(**changes: Any) -> Verdict:
    return evaluate_availability(dataclasses.replace(GOOD, **changes))


def test_available() -> None:
    assert evaluate_availability(GOOD) is OK


@pytest.mark.parametrize(
    "chosen", [c for n in range(1, 6) for c in itertools.combinations(range(5), n)]
)
def test_every_combination_of_failures_gives_the_first(chosen: tuple[int, ...]) -> None:
    changes: dict[str, Any] = {}
    for index in chosen:
        changes |= FAILURES[index][0]
    verdict = judge(**changes)
    assert not verdict.ok
    assert verdict.reason is FAILURES[chosen[0]][1]


@pytest.mark.parametrize("state", [s for s in State if s is not State.READY])
def test_no_other_state_is_available(state: State) -> None:
    assert judge(state=state).reason is Reason.NOT_READY


@pytest.mark.parametrize("value", [1, "true", "false", None, [], {}, 1.0])
@pytest.mark.parametrize("name", ["verified", "listener_bound", "token_stored"])
def test_only_true_counts_as_true(name: str, value: object) -> None:
    assert not judge(**{name: value}).ok


def test_recency_is_fifteen_seconds_inclusive() -> None:
    assert RECENCY_SECONDS == 15
    assert judge(now=100.0).ok
    assert judge(now=115.0).ok
    assert not judge(now=115.001).ok


def test_a_shorter_recency_holds() -> None:
    assert judge(now=100.5, recency_seconds=0.5).ok
    assert not judge(now=100.75, recency_seconds=0.5).ok


def test_a_health_answer_from_the_future_is_none() -> None:
    assert judge(now=99.999).reason is Reason.HEALTH_STALE


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "15", True, None, [], 10**400, -(10**400)]
)
@pytest.mark.parametrize("name", ["now", "last_health_ok", "recency_seconds"])
def test_malformed_times_are_stale(name: str, value: object) -> None:
    assert judge(**{name: value}).reason is Reason.HEALTH_STALE


@pytest.mark.parametrize("value", [0, -1, -0.5])
def test_a_recency_that_is_no_span_is_stale(value: float) -> None:
    assert not judge(now=100.0, recency_seconds=value).ok


@pytest.mark.parametrize("facts", [None, True, {}, [], dataclasses.asdict(GOOD), "ready"])
def test_what_is_no_facts_is_not_verified(facts: object) -> None:
    assert evaluate_availability(facts).reason is Reason.NOT_VERIFIED


@given(st.tuples(*[ANYTHING] * 7))
def test_total_deterministic_and_fail_closed(values: tuple[Any, ...]) -> None:
    names = [field.name for field in dataclasses.fields(AvailabilityFacts)]
    facts = AvailabilityFacts(**dict(zip(names, values, strict=True)))
    verdict = evaluate_availability(facts)
    assert verdict is evaluate_availability(facts), "answers are made once"
    if verdict.ok:
        assert facts.verified is facts.listener_bound is facts.token_stored is True
        assert facts.state == "ready"
        assert 0 <= facts.now - (facts.last_health_ok or 0) <= facts.recency_seconds
