"""`companion run`: from a model's file or name to its answer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import click

from companion_core.cli import Settings
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.chat_command import answer_options
from companion_core.cli.chat_stream import Sampling
from companion_core.cli.conversation import Talk, prompt_of
from companion_core.cli.detached import start_detached
from companion_core.cli.model_sources import (
    SOURCE_OPTIONS,
    Wanted,
    add_model,
    kind_of,
    look_at_file,
    recorded_source,
    source_options,
    take_files,
)
from companion_core.cli.model_swap import swap_model
from companion_core.cli.own_library import OwnLibrary, open_library
from companion_core.cli.progress import StepPrinter
from companion_core.cli.suggestions import model_sources
from companion_core.control.client import ask_running, find_running
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.system.stop_signals import stop_signals_restored

__all__ = ["command", "known_or_added"]

# A companion that starts at this very moment is waited for as long as a start may take.
_START_SECONDS: Final = 180.0
_POLL_SECONDS: Final = 0.1


@click.command("run")
@click.argument("source", shell_complete=model_sources)
@click.argument("prompt", required=False)
@source_options
@answer_options
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with the answer.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    *,
    source: str,
    prompt: str | None,
    system: str | None,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask a model, the shortest way: add it if it is new, start it, and answer.

    SOURCE is what `companion models add` takes (a GGUF file, an https address, or
    hf:OWNER/REPO[:QUANT]), or the id of a model that you have. With PROMPT, or a text on stdin,
    it prints one answer; on a terminal it opens a conversation.

    The companion keeps running afterwards, so that the next answer comes at once; `companion
    down` ends it. If it serves another model, it changes to this one.
    """
    asked = prompt_of(prompt)
    library = open_library(settings, as_json=as_json, yes=yes, brief=True)
    wanted = Wanted(source=source, **{name: options.pop(name) for name in SOURCE_OPTIONS})
    served = known_or_added(library, wanted)
    with stop_signals_restored():
        _serve(settings, served, library.printer)
    library.printer.clear()
    talk = Talk(settings, sampling=Sampling(**options), system=system)
    if asked is None and not as_json:
        click.echo(f"companion: {served} listens; /help says what you can type", err=True)
        talk.converse()
    else:
        talk.answer_once(asked or "", as_json=as_json)


def known_or_added(library: OwnLibrary, wanted: Wanted) -> str:
    """Return the id of a model that can be served: a known one, or one that is added now."""
    if kind_of(wanted.source) != "file":
        recorded = recorded_source(library, wanted)
        if recorded is not None:
            return recorded
        added = add_model(library, wanted)
    elif _is_id(wanted.source):
        return run_cancellable(lambda stop: library.models.known.model(wanted.source, stop)).id
    else:
        found = look_at_file(wanted)
        with library.key_told():
            recorded = library.models.known.recorded_as(found)
        if recorded is not None and wanted.model_id in {None, recorded}:
            return recorded
        added = take_files(library, found)
    if not added.was_known:
        library.printer.clear()
        click.echo(f"companion: {added.id} is recorded in your name", err=True)
    return added.id


def _is_id(source: str) -> bool:
    """Tell whether it names a model: it looks like no path, and no such file is here."""
    paths = {os.sep, os.altsep or os.sep}
    is_path = any(each in source for each in paths) or source.lower().endswith(".gguf")
    return not is_path and not Path(source).expanduser().exists()


def _serve(settings: Settings, model_id: str, printer: StepPrinter) -> None:
    """Have the companion serve the model: start it, or let it change to that model."""
    if find_running(settings.paths, settings.egress) is None:
        try:
            start_detached(settings, model_id, printer)
        except CompanionError as error:
            if error.reason is not Reason.ALREADY_RUNNING:  # another start was first
                raise
        else:
            if not settings.quiet:
                printer.clear()
                click.echo("companion: it keeps running; companion down ends it", err=True)
            return
    serving = _await_serving(settings)
    if serving == model_id:
        return
    running = find_running(settings.paths, settings.egress)
    if running is None:
        raise CompanionError(Reason.NOT_RUNNING)
    click.echo(f"companion: it changes from {serving} to {model_id}", err=True)
    swap_model(settings, running, model_id, printer)


def _await_serving(settings: Settings) -> str:
    """Return the model that a running companion serves, once it has started."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        status = ask_running(settings.paths, settings.egress, "status")
        if status["available"]:
            return str(status["model"]["id"])
        if status["lifecycle"] not in {"starting", "stopped"} or time.monotonic() > deadline:
            reason = Reason(status["reason"])
            raise error_for(reason)
        time.sleep(_POLL_SECONDS)
