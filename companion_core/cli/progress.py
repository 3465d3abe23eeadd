"""Shows steps to a person: lines on stderr, and a bar if that is a terminal."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from companion_core.cli import drop_output, is_terminal
from companion_core.serving.step import Step, amount

__all__ = ["StepPrinter"]

BAR_WIDTH: Final = 28
NAME_WIDTH: Final = 10


class StepPrinter:
    """Prints each step once and draws progress in place; respects CI and --quiet.

    Colour and bars follow the terminal: `NO_COLOR`, `CI` and a redirected stderr turn them off.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = is_terminal(sys.stderr)
        self._draws = self._terminal and not quiet and "CI" not in os.environ
        self._drawn = False

    def __call__(self, step: Step) -> None:
        """Show one step."""
        if self._quiet:
            return
        try:
            self._show(step)
        except OSError:  # the reader of stderr has exited; the work goes on without it
            drop_output(sys.stderr)
            self._quiet = True

    def _show(self, step: Step) -> None:
        if step.total:
            self._draw(step)
            return
        self._clear()
        name = f"{step.name:{NAME_WIDTH}}"
        if self._terminal and not os.environ.get("NO_COLOR"):
            name = click.style(name, bold=True)
        click.echo(f"{name} {step.text}", err=True)

    def _draw(self, step: Step) -> None:
        if not self._draws:
            return
        filled = BAR_WIDTH * step.done // step.total
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        line = f"{step.name:{NAME_WIDTH}} [{bar}] {amount(step.done, step.total)}"
        click.echo(f"\r{line}", err=True, nl=False)
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            click.echo("\r" + " " * (NAME_WIDTH + BAR_WIDTH + 32) + "\r", err=True, nl=False)
            self._drawn = False
