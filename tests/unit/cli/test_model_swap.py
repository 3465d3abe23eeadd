"""What the asking command does with news, refusals, silence and signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.cli import Settings, model_swap
from companion_core.control import RunningInstance
from companion_core.egress import ProcessIdentity, RefusingEgress
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, UsageError
from companion_core.step import Step

pytestmark = pytest.mark.unit

RUNNING = RunningInstance(ProcessIdentity(1, 2, ""), Path("s"), Path("l"))


def news(*steps: Step, ended: bool = False, progress: Any = None, error: Any = None):
    told = [{"name": s.name, "text": s.text, "done": s.done, "total": s.total} for s in steps]
    return {"steps": told, "progress": progress, "ended": ended, "error": error}


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that has its result ignores stop signals until it ends; a test goes on."""
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
            return answer

        def swap(self, *answers: Any) -> Any:
            self.answers = iter(answers)
            settings = Settings(egress=RefusingEgress(), state_dir=Path("/nonexistent"))
            return model_swap.swap_model(settings, RUNNING, "new", self.steps.append)

    made = Companion()
    monkeypatch.setattr(model_swap, "ask", made.ask)
    monkeypatch.setattr(
        model_swap, "find_running", lambda *_: RUNNING if made.still_there else None
    )
    return made


def test_it_follows_to_the_end_and_returns_the_status(companion):
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


@pytest.mark.parametrize("still_there", [True, False])
def test_a_companion_that_answers_no_more_is_there_or_was_stopped(companion, still_there):
    companion.still_there = still_there
    with pytest.raises(Exception) as caught:
        companion.swap({}, EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE))
    expected = Reason.CONTROL_UNAVAILABLE if still_there else Reason.INTERRUPTED
    assert caught.value.reason is expected


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
