"""Ask a running companion for another model, and follow it to the end."""

from __future__ import annotations

import secrets
from typing import Any, Final

import click

from companion_core.cli import Settings
from companion_core.control.client import RunningInstance, ask, has_gone, known_reason
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    Reason,
    UsageError,
    error_for,
)
from companion_core.serving.step import OnStep, Step
from companion_core.system.stop_signals import stop_signals_interrupt

__all__ = ["swap_model"]

# A minute in all: an unanswered question times out after ten seconds.
ATTEMPTS: Final = 6


def swap_model(
    settings: Settings, running: RunningInstance, model_id: str, on_step: OnStep
) -> dict[str, Any]:
    """Return the companion's status once it serves the model. Blocks.

    A stop signal before the drain cancels the swap. After it the swap goes on: the first signal
    is told so, and the next one ends this waiting.

    Raises:
        CompanionError: why the model does not serve; `control_unavailable` if the outcome is
            unknown, because the companion runs and has not answered for a minute.
        KeyboardInterrupt: the person stopped waiting for the swap.
    """
    following = _Following(settings, running, on_step)
    with stop_signals_interrupt() as finish:
        try:
            following.begin(model_id)
            following.follow()
        except KeyboardInterrupt:
            following.cancel()
            following.follow()
        finish()
    return following.status()


class _Following:
    """Follows one swap by asking the companion for news.

    The companion answers several times a second, however long a step takes. If it does not
    answer and has exited, the swap has ended too. If it still runs, it is asked again for a
    while: it may be suspended, or its machine overloaded.
    """

    def __init__(self, settings: Settings, running: RunningInstance, on_step: OnStep) -> None:
        self._settings = settings
        self._running = running
        self._swap = secrets.token_hex(8)
        self._on_step = on_step
        self._seen = 0

    def begin(self, model_id: str) -> None:
        """Ask the companion to begin the swap."""
        self._ask("swap", swap=self._swap, model=model_id)

    def follow(self) -> None:
        """Show each step, and return when the new model serves."""
        while not (news := self._ask("swap_news", swap=self._swap, seen=self._seen))["ended"]:
            self._show(news)
        self._show(news)
        if (error := news["error"]) is not None:
            reason = known_reason(error["reason"])
            raise error_for(reason, error["detail"], plugin=error["plugin"])

    def cancel(self) -> None:
        """End the swap if it has changed nothing yet."""
        try:
            cancelled = self._ask("swap_cancel", swap=self._swap)["cancelled"]
        except UsageError:
            raise KeyboardInterrupt from None  # the swap had not begun
        if not cancelled:
            click.echo("companion: the drain has begun; the swap goes on to its end", err=True)

    def status(self) -> dict[str, Any]:
        """Return the companion's status."""
        return self._ask("status")

    def _show(self, news: dict[str, Any]) -> None:
        for step in news["steps"]:
            self._seen += 1
            self._on_step(Step(**step))
        if news["progress"] is not None:
            self._on_step(Step(**news["progress"]))

    def _ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask until there is an answer; each question may be repeated safely."""
        for attempt in range(ATTEMPTS):
            try:
                return ask(self._running, self._settings.egress, op, **arguments)
            except EnvironmentUnavailable as error:
                if error.reason is not Reason.CONTROL_UNAVAILABLE:
                    raise
            if has_gone(self._running, self._settings.paths, self._settings.egress):
                raise CompanionError(Reason.INTERRUPTED)
            if attempt == 0:
                text = f"pid {self._running.identity.pid} runs but does not answer; asking again"
                self._on_step(Step("silence", text))
        raise error_for(
            Reason.CONTROL_UNAVAILABLE,
            f"pid {self._running.identity.pid} runs but has not answered for long; when it goes "
            "on, so does the swap, and companion status shows it",
        )
