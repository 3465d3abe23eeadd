"""`companion chat`: ask the model that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from companion_core.cli import Settings
from companion_core.cli.chat_stream import Sampling
from companion_core.cli.conversation import Talk, prompt_of
from companion_core.cli.suggestions import model_ids
from companion_core.control.client import ask_running

__all__ = ["answer_options", "command"]

C = TypeVar("C", bound=Callable[..., Any])


def answer_options(function: C) -> C:
    """Give a command the options about its answer; it hands them to `Sampling` and `Talk`."""
    for option in (
        click.option("--seed", type=int, help="For an answer that can be had again."),
        click.option("--temperature", type=click.FloatRange(0, 2), help="0: the likeliest answer."),
        click.option("--max-tokens", type=click.IntRange(1), help="At most, of the answer."),
        click.option("--system", metavar="TEXT", help="What the model is told before all else."),
    ):
        function = option(function)
    return function


@click.command("chat")
@click.argument("prompt", required=False)
@click.option(
    "--model",
    "model_id",
    metavar="ID",
    help="Ask this model; else the one that runs.",
    shell_complete=model_ids,
)
@answer_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document with the answer.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    prompt: str | None,
    model_id: str | None,
    system: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Ask the model that runs: one answer to PROMPT, or a conversation on a terminal.

    Without PROMPT, or with "-", the text on stdin is the prompt. Ctrl-C ends an answer, and so
    the model's work on it. Nothing of it is kept.
    """
    ask_running(settings.paths, settings.egress, "session")  # before a person types anything
    talk = Talk(settings, sampling=Sampling(**sampling), system=system, model_id=model_id)
    asked = prompt_of(prompt)
    if asked is None and not as_json:
        talk.converse()
    else:
        talk.answer_once(asked or "", as_json=as_json)
