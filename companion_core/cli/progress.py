"""Shows steps to a person: lines on stderr, and a bar with rate and time left on a terminal.

A program that asked for JSON gets each step as a line of JSON on stderr instead.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import click

from companion_core.cli import drop_output, is_terminal
from companion_core.serving.step import Step, amount
from companion_core.system.harmless_text import harmless

__all__ = ["StepPrinter"]

BAR_WIDTHS: Final = (8, 28)  # at least and at most; what the line has room for
NAME_WIDTH: Final = 10
WINDOW_SECONDS: Final = 5.0  # a rate is that of the last few seconds
DRAW_SECONDS: Final = 0.1
LINE_SECONDS: Final = 0.5  # between two lines of JSON on the same step


class StepPrinter:
    """Prints each step once and draws progress in place; respects CI and --quiet.

    Colour and bars follow the terminal: `NO_COLOR`, `CI` and a redirected stderr turn them off.

    Args:
        quiet: show nothing.
        as_json: lines of JSON for a program.
        brief: a step stands in the line only until the next one; elsewhere than on a terminal
            nothing is shown.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        brief: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._brief = brief
        self._terminal = is_terminal(sys.stderr)
        self._draws = self._terminal and not quiet and "CI" not in os.environ
        self._drawn = 0  # columns
        self._pace = _Pace(clock)

    def __call__(self, step: Step) -> None:
        """Show one step."""
        self._unless_nobody_reads(lambda: self._show(step))

    def clear(self) -> None:
        """Take away what stands in the line for the moment."""
        self._unless_nobody_reads(self._clear)

    def _unless_nobody_reads(self, show: Callable[[], None]) -> None:
        if self._quiet:
            return
        try:
            show()
        except OSError:  # the reader of stderr has exited; the work goes on without it
            drop_output(sys.stderr)
            self._quiet = True

    def _show(self, step: Step) -> None:
        self._pace.take(step)
        if self._as_json:
            if self._pace.is_due(step, LINE_SECONDS):
                click.echo(json.dumps(self._document(step)), err=True)
        elif step.total:
            if self._draws and self._pace.is_due(step, DRAW_SECONDS):
                self._draw(self._bar(step))
        elif self._brief:
            if self._draws:
                self._draw(f"{step.name:{NAME_WIDTH}} {harmless(step.text)}")
        else:
            self._clear()
            name = f"{step.name:{NAME_WIDTH}}"
            if self._terminal and not os.environ.get("NO_COLOR"):
                name = click.style(name, bold=True)
            click.echo(f"{name} {harmless(step.text)}", err=True)

    def _document(self, step: Step) -> dict[str, Any]:
        said: dict[str, Any] = {"step": step.name, "text": step.text}
        if step.total:
            rate, left = self._pace.rate, self._pace.seconds_left
            said |= {
                "done": step.done,
                "total": step.total,
                "bytes_per_second": None if rate is None else round(rate),
                "seconds_left": None if left is None else round(left),
            }
        return said

    def _bar(self, step: Step) -> str:
        parts = [amount(step.done, step.total)]
        if (rate := self._pace.rate) is not None:
            parts.append(f"{rate / 1e6:.1f} MB/s")
        if (left := self._pace.seconds_left) is not None and step.done < step.total:
            parts.append(f"{_duration(left)} left")
        told = ", ".join(parts)
        least, most = BAR_WIDTHS
        room = _columns() - NAME_WIDTH - len(" [] ") - len(told)
        width = min(max(room, least), most)
        filled = width * min(step.done, step.total) // step.total
        return f"{step.name:{NAME_WIDTH}} [{'#' * filled}{'-' * (width - filled)}] {told}"

    def _draw(self, line: str) -> None:
        """Write over what stands there; a line that is cut off can be written over as well."""
        line = line.splitlines()[0][: _columns()]
        click.echo(f"\r{line}{' ' * (self._drawn - len(line))}", err=True, nl=False)
        self._drawn = len(line)

    def _clear(self) -> None:
        if self._drawn:
            click.echo(f"\r{' ' * self._drawn}\r", err=True, nl=False)
            self._drawn = 0


class _Pace:
    """How fast one step goes on, and how long it will take."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._step: tuple[str, str, int] | None = None
        self._total = 0
        self._shown: float | None = None

    def take(self, step: Step) -> None:
        """Take where a step is now; another step begins anew."""
        now, same = self._clock(), (step.name, step.text, step.total)
        if same != self._step or (self._seen and step.done < self._seen[-1][1]):
            self._seen.clear()
            self._step, self._shown = same, None
        self._total = step.total
        self._seen.append((now, step.done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_SECONDS:  # noqa: PLR2004 - a rate needs two
            self._seen.popleft()

    def is_due(self, step: Step, seconds: float) -> bool:
        """Tell whether it is time to show the step again; its first and its last state always."""
        now = self._seen[-1][0]
        due = self._shown is None or now - self._shown >= seconds
        if due or step.done >= step.total:
            self._shown = now
            return True
        return False

    @property
    def rate(self) -> float | None:
        """Bytes a second; None while that is not known, or nothing comes."""
        (begin, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - begin) if now > begin and done > before else None

    @property
    def seconds_left(self) -> float | None:
        """None while there is no rate."""
        rate = self.rate
        return None if rate is None else (self._total - self._seen[-1][1]) / rate


def _columns() -> int:
    """Return how long a line may be that is written over; a full one would begin another."""
    return shutil.get_terminal_size().columns - 1


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
