"""Progress: a bar with rate and time left on a terminal, lines of JSON for programs, or nothing."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from companion_core.cli.progress import StepPrinter
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

MB = 1_000_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def shown(stream: io.StringIO) -> str:
    """Return what stands in the terminal's last line."""
    line, column = [" "] * 400, 0
    for character in stream.getvalue().rpartition("\n")[2]:
        if character == "\r":
            column = 0
        else:
            line[column] = character
            column += 1
    return "".join(line).rstrip()


def test_a_bar_says_how_fast_and_how_much_longer(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(clock=clock)
    for second in range(11):
        clock.now = 100.0 + second
        printer(Step("download", "tiny", second * 10 * MB, 400 * MB))
    line = shown(stream)
    assert "100.0 of 400.0 MB" in line
    assert "10.0 MB/s" in line
    assert "30 s left" in line


@pytest.mark.parametrize(
    ("seconds", "says"), [(5, "5 s left"), (119, "1:59 left"), (7384, "2:03:04 left")]
)
def test_the_time_left_is_told_in_the_usual_form(
    seconds: int, says: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(clock=clock)
    printer(Step("download", "tiny", 0, (seconds + 2) * MB))
    clock.now += 2
    printer(Step("download", "tiny", 2 * MB, (seconds + 2) * MB))
    assert says in shown(stream)


def test_a_rate_is_that_of_the_last_seconds_and_not_of_what_was_there_before(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(clock=clock)
    printer(Step("download", "tiny", 900 * MB, 1000 * MB))  # a download that goes on
    clock.now += 1
    printer(Step("download", "tiny", 901 * MB, 1000 * MB))
    assert "1.0 MB/s" in shown(stream)
    for _ in range(20):
        clock.now += 1
        printer(Step("download", "tiny", 901 * MB, 1000 * MB))
    assert "MB/s" not in shown(stream)  # it stands still: no rate, and no time left
    assert "left" not in shown(stream)


def test_the_bar_is_drawn_a_few_times_a_second_and_always_at_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(clock=clock)
    for done in range(1001):
        clock.now += 0.001
        printer(Step("verify", "tiny", done, 1000))
    assert stream.getvalue().count("\r") < 30
    assert "#" * 28 in shown(stream)
    assert "-" not in shown(stream)


def test_a_shorter_line_leaves_nothing_of_the_longer_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(clock=clock)
    printer(Step("download", "tiny", 1, 100_000 * MB))
    clock.now += 100
    printer(Step("download", "tiny", 1 * MB, 2 * MB))
    assert "1.0 of 2.0 MB" in shown(stream)
    assert "100000" not in shown(stream)
    printer(Step("model", "tiny: proved"))
    assert "[-" not in stream.getvalue().rpartition("\r")[2]


def test_a_line_never_reaches_the_terminals_edge(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    printer = StepPrinter(clock=clock, brief=True)
    printer(Step("download", "tiny", 1, 100_000 * MB))
    printer(Step("model", "x" * 100))
    assert len(shown(stream)) == 39


@pytest.mark.parametrize("hides", ["CI", "quiet", "no terminal"])
def test_no_bar_is_drawn_where_nobody_looks(
    hides: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO() if hides == "no terminal" else Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    if hides == "CI":
        monkeypatch.setenv("CI", "1")
    printer = StepPrinter(quiet=hides == "quiet", clock=clock)
    printer(Step("download", "tiny", 1, 2))
    assert stream.getvalue() == ""


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_programs_get_each_step_as_a_line_of_json(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(as_json=True, clock=clock)
    printer(Step("model", "tiny: proved"))
    for second in range(3):
        clock.now = 100.0 + second
        printer(Step("download", "tiny", second * 10, 40))
    first, begin, _, last = lines(stream)
    assert first == {"step": "model", "text": "tiny: proved"}
    assert begin == {
        "step": "download", "text": "tiny", "done": 0, "total": 40,
        "bytes_per_second": None, "seconds_left": None,
    }  # fmt: skip
    assert last["bytes_per_second"] == 10
    assert last["seconds_left"] == 2


def test_quiet_programs_get_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    StepPrinter(as_json=True, quiet=True)(Step("model", "tiny"))
    assert stream.getvalue() == ""


def test_a_brief_printer_leaves_one_line_on_a_terminal_and_clears_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    printer = StepPrinter(brief=True, clock=clock)
    printer(Step("keychain", "a test value was written, read and deleted"))
    printer(Step("model", "tiny"))
    assert "\n" not in stream.getvalue()
    assert "tiny" in shown(stream)
    assert "deleted" not in shown(stream)
    printer.clear()
    assert shown(stream) == ""


def test_a_brief_printer_says_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    printer = StepPrinter(brief=True)
    printer(Step("model", "tiny"))
    printer.clear()
    assert stream.getvalue() == ""
