from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.restart import (
    DELAYS_SECONDS,
    LOOP_ENDINGS,
    LOOP_SECONDS,
    Ending,
    RestartDecision,
    Size,
    decide_restart,
    smaller,
)
from companion_core.errors import REASONS, Culprit, Reason

pytestmark = pytest.mark.unit

BAD = [reason for reason in Reason if reason is not Reason.OK]


def ended(exit_code: int | None, *, ready: bool = False, reason: Reason = Reason.RUNTIME_EXITED):
    return Ending(reason=reason, exit_code=exit_code, ready=ready)


@pytest.mark.parametrize("code", [0, 1, 3, 127])
def test_its_own_exit_before_it_was_ready_is_permanent(code) -> None:
    assert decide_restart(ended(code), [0.0], 0.0) == RestartDecision(
        delay=None, reason=Reason.RUNTIME_EXITED
    )


@pytest.mark.parametrize(
    "ending",
    [
        ended(-9),
        ended(-11),
        ended(None),
        ended(0, ready=True),
        ended(1, ready=True),
        ended(None, ready=True, reason=Reason.HEALTH_FAILED),
        ended(None, reason=Reason.START_TIMEOUT),
        ended(1, reason=Reason.START_TIMEOUT),
        ended(None, reason=Reason.MEMORY_SHORT),
    ],
)
def test_a_signal_a_later_exit_and_a_want_of_the_machine_are_transient(ending) -> None:
    assert decide_restart(ending, [0.0], 0.0) == RestartDecision(
        delay=DELAYS_SECONDS[0], reason=Reason.OK
    )


@pytest.mark.parametrize(
    "reason", [reason for reason in BAD if REASONS[reason].culprit is not Culprit.ENVIRONMENT]
)
def test_what_waiting_does_not_change_is_permanent(reason) -> None:
    assert decide_restart(ended(None, reason=reason), [0.0], 0.0) == RestartDecision(
        delay=None, reason=reason
    )


def test_the_delay_grows_until_the_breaker() -> None:
    decisions = [
        decide_restart(ended(-9, ready=True), [float(at) for at in range(count)], float(count))
        for count in range(1, LOOP_ENDINGS + 2)
    ]
    assert [decision.delay for decision in decisions] == [*DELAYS_SECONDS, None, None]
    assert {decision.reason for decision in decisions[LOOP_ENDINGS - 1 :]} == {Reason.CRASH_LOOP}


def test_endings_of_long_ago_are_forgiven() -> None:
    now = 10 * LOOP_SECONDS
    old = [now - LOOP_SECONDS - 1] * 50
    assert decide_restart(ended(-9), [*old, now], now).delay == DELAYS_SECONDS[0]


@given(
    st.builds(
        Ending,
        reason=st.sampled_from(BAD),
        exit_code=st.none() | st.integers(-64, 255),
        ready=st.booleans(),
    ),
    st.lists(st.floats(0, 1e6)),
    st.floats(0, 1e6),
)
def test_a_decision_is_a_bounded_delay_or_a_reason(ending, endings, now) -> None:
    decision = decide_restart(ending, endings, now)
    if decision.delay is None:
        assert decision.reason is not Reason.OK
    else:
        assert decision.delay in DELAYS_SECONDS
        assert decision.reason is Reason.OK


def test_a_runtime_shrinks_step_by_step_to_an_end() -> None:
    steps, size = [], Size(parallel=8, context_length=None)
    while (size := smaller(size)) is not None:
        steps.append((size.parallel, size.context_length))
    assert steps == [(4, None), (2, None), (1, None), (1, 4096), (1, 2048), (1, 1024), (1, 512)]
    assert smaller(Size(parallel=1, context_length=100)) is None


def test_a_smaller_size_is_whole_and_keeps_its_context_until_one_is_left() -> None:
    assert smaller(Size(parallel=5, context_length=2049)) == Size(parallel=2, context_length=2049)
    halved = smaller(Size(parallel=1, context_length=2049))
    assert halved == Size(parallel=1, context_length=1024)
    assert type(halved.context_length) is int
    assert type(smaller(Size(parallel=5, context_length=None)).parallel) is int


@pytest.mark.parametrize("reason", [Reason.MODEL_IN_USE, Reason.MODEL_REMOVED])
def test_without_its_model_nothing_is_started_again(reason):
    ending = Ending(reason=reason, exit_code=None, ready=False)
    assert decide_restart(ending, [1.0], 2.0) == RestartDecision(delay=None, reason=reason)
