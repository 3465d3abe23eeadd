"""How the command that asks for a swap handles news, refusals, silence and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.cli import Settings, model_swap
from companion_core.control.client import RunningInstance
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    PluginFault,
    Reason,
    UsageError,
)
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

RUNNING = RunningInstance(ProcessIdentity(1, 2, ""), Path("s"), Path("l"))


def news(*steps: Step, ended: bool = False, progress: Any = None, error: Any = None):
    told = [{"name": s.name, "text": s.text, "done": s.done, "total": s.total} for s in steps]
    return {"steps": told, "progress": progress, "ended": ended, "error": error}


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Restore stop signals, which a command ignores once it has its result."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def companion(monkeypatch):
    """Plays the companion: each question takes the next answer; an exception is raised."""

    class Companion:
        def __init__(self) -> None:
            self.asked: list[tuple[str, Any]] = []
            self.steps: list[Step] = []
            self.answers: Iterator[Any] = iter(())
            self.still_there = True

        def ask(self, running, _egress, op, **arguments):
            assert running is RUNNING
            self.asked.append((op, arguments.get("seen")))
            answer = next(self.answers)
            if isinstance(answer, BaseException):
                raise answer
            return answer() if callable(answer) else answer

        def swap(self, *answers: Any) -> Any:
            self.answers = iter(answers)
            settings = Settings(egress=RefusingEgress(), state_dir=Path("/nonexistent"))
            return model_swap.swap_model(settings, RUNNING, "new", self.steps.append)

    made = Companion()
    # In place of a running companion and its control socket.
    monkeypatch.setattr(model_swap, "ask", made.ask)
    monkeypatch.setattr(model_swap, "has_gone", lambda *_: not made.still_there)
    return made


def test_the_swap_is_followed_to_its_end_and_the_status_returned(companion):
    bar = {"name": "download", "text": "new", "done": 1, "total": 2}
    first, second = Step("manifest", "m"), Step("model", "p")
    status = companion.swap(
        {}, news(first), news(progress=bar), news(second, ended=True), {"available": True}
    )
    assert status == {"available": True}
    assert companion.steps == [first, Step(**bar), second]
    assert companion.asked == [
        ("swap", None),
        ("swap_news", 0),
        ("swap_news", 1),
        ("swap_news", 1),
        ("status", None),
    ]


def test_a_refusal_comes_with_its_plugin(companion):
    error = {"reason": "plugin_call_failed", "detail": "d", "plugin": "p"}
    with pytest.raises(PluginFault) as caught:
        companion.swap({}, news(ended=True, error=error))
    assert (caught.value.reason, caught.value.detail, caught.value.plugin) == (
        Reason.PLUGIN_CALL_FAILED,
        "d",
        "p",
    )


def silence() -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)


def test_a_silent_companion_that_has_gone_was_stopped(companion):
    companion.still_there = False
    with pytest.raises(CompanionError) as caught:
        companion.swap({}, silence())
    assert caught.value.reason is Reason.INTERRUPTED
    assert companion.steps == []


def test_a_silent_companion_that_runs_is_asked_again(companion):
    answers = [{}, news(Step("manifest", "m")), news(ended=True), {"available": True}]
    waits = [each for answer in answers for each in (silence(), silence(), answer)]
    assert companion.swap(*waits) == {"available": True}
    assert [op for op, _ in companion.asked[::3]] == ["swap", "swap_news", "swap_news", "status"]
    assert [step.name for step in companion.steps].count("silence") == len(answers)


def test_a_companion_that_stays_silent_is_given_up_with_advice(companion):
    with pytest.raises(EnvironmentUnavailable) as caught:
        companion.swap({}, *(silence() for _ in range(100)))
    assert caught.value.reason is Reason.CONTROL_UNAVAILABLE
    assert "companion status" in caught.value.detail
    assert len(companion.asked) == 1 + model_swap.ATTEMPTS


def test_a_refusal_is_not_asked_for_again(companion):
    with pytest.raises(EnvironmentUnavailable) as caught:
        companion.swap(EnvironmentUnavailable(Reason.SWAP_IN_PROGRESS))
    assert caught.value.reason is Reason.SWAP_IN_PROGRESS


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_when_it_has_ended_changes_nothing(companion):
    def interrupted() -> dict[str, bool]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"available": True}

    try:
        assert companion.swap({}, news(ended=True), interrupted) == {"available": True}
    except KeyboardInterrupt:
        pytest.fail("it was interrupted")


def test_a_signal_cancels_and_waits_for_the_end(companion):
    error = {"reason": "interrupted", "detail": "", "plugin": ""}
    with pytest.raises(Exception) as caught:
        companion.swap({}, KeyboardInterrupt(), {"cancelled": True}, news(ended=True, error=error))
    assert caught.value.reason is Reason.INTERRUPTED
    assert [op for op, _ in companion.asked] == ["swap", "swap_news", "swap_cancel", "swap_news"]


def test_a_signal_that_comes_too_late_is_told_so(companion, capsys):
    done = companion.swap({}, KeyboardInterrupt(), {"cancelled": False}, news(ended=True), {"s": 1})
    assert done == {"s": 1}
    assert "goes on to its end" in capsys.readouterr().err


def test_a_second_signal_ends_the_waiting(companion):
    with pytest.raises(KeyboardInterrupt):
        companion.swap({}, KeyboardInterrupt(), {"cancelled": False}, KeyboardInterrupt())


def test_a_signal_before_it_had_begun_is_an_interrupt(companion):
    with pytest.raises(KeyboardInterrupt):
        companion.swap(KeyboardInterrupt(), UsageError(Reason.USAGE))
