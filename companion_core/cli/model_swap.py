"""Ask a running companion for another model, and follow it to the end."""

from __future__ import annotations

import secrets
from typing import Any

import click

from companion_core.cli import Settings
from companion_core.cli.stop_signals import stop_signals_interrupt
from companion_core.control import RunningInstance, ask, find_running, known_reason
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    Reason,
    UsageError,
    error_for,
)
from companion_core.step import OnStep, Step

__all__ = ["swap_model"]


def swap_model(
    settings: Settings, running: RunningInstance, model_id: str, on_step: OnStep
) -> dict[str, Any]:
    """Return the companion's status once it serves the model. Blocks.

    A stop signal before the drain ends the swap; a later one is told that it comes too late,
    and the next one ends the waiting alone.

    Raises:
        CompanionError: why the model does not serve.
        KeyboardInterrupt: nobody waits for the swap any more.
    """
    swap = secrets.token_hex(8)
    following = _Following(settings, running, swap, on_step)
    with stop_signals_interrupt() as finish:
        try:
            ask(running, settings.egress, "swap", swap=swap, model=model_id)
            following.follow()
        except KeyboardInterrupt:
            following.cancel()
            following.follow()
        finish()
    return ask(running, settings.egress, "status")


class _Following:
    """Hears what becomes of one swap."""

    def __init__(
        self, settings: Settings, running: RunningInstance, swap: str, on_step: OnStep
    ) -> None:
        self._settings = settings
        self._running = running
        self._swap = swap
        self._on_step = on_step
        self._seen = 0

    def follow(self) -> None:
        """Tell of each step, and return when the new model serves."""
        while not (news := self._ask("swap_news", seen=self._seen))["ended"]:
            self._show(news)
        self._show(news)
        if (error := news["error"]) is not None:
            reason = known_reason(error["reason"])
            raise error_for(reason, error["detail"], plugin=error["plugin"])

    def cancel(self) -> None:
        """End the swap if it has changed nothing yet."""
        try:
            cancelled = self._ask("swap_cancel")["cancelled"]
        except UsageError:
            raise KeyboardInterrupt from None  # it had not even begun
        if not cancelled:
            click.echo("companion: the drain has begun; the swap goes on to its end", err=True)

    def _show(self, news: dict[str, Any]) -> None:
        for step in news["steps"]:
            self._seen += 1
            self._on_step(Step(**step))
        if news["progress"] is not None:
            self._on_step(Step(**news["progress"]))

    def _ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        settings, running = self._settings, self._running
        try:
            return ask(running, settings.egress, op, swap=self._swap, **arguments)
        except EnvironmentUnavailable:
            if find_running(settings.paths, settings.egress) != running:
                raise CompanionError(Reason.INTERRUPTED) from None
            raise
