"""`companion update`: what was set up, brought up to date in order."""

from __future__ import annotations

import threading
from typing import Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.update_steps import State, UpdateSteps
from companion_core.system.folder_lock import lock_folder
from companion_core.system.harmless_text import harmless

__all__ = ["command"]

_NAME_WIDTH: Final = 14


@click.command("update")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Bring what is set up to date, in order: after an upgrade, or now and then.

    The configuration is read; plugins that changed are shown and asked for; the publisher's
    manifest is fetched; your own list of models is signed for another year while their bytes are
    what you recorded; a new model is stored; connected programs and the service are led to what is
    true now; and a companion that runs is drained and started again if it has to be. A second run
    changes nothing. A step that has to wait says for what.
    """
    settings.paths.prepare()
    outcomes = []
    with lock_folder(settings.paths.folder, threading.Event()):
        steps = UpdateSteps(settings, dry_run=dry_run, as_json=as_json)
        for outcome in steps.run():
            outcomes.append(outcome)
            if not as_json:
                line = f"{outcome.name:{_NAME_WIDTH}} {outcome.state.value:10} {outcome.detail}"
                click.echo(harmless(line.rstrip()))
    failed = next((each.error for each in outcomes if each.state is State.FAILED), None)
    if as_json and failed is None:
        document = {"steps": [each.document() for each in outcomes], "dry_run": dry_run}
        echo_result(document, "", as_json=True)
    if failed is not None:
        raise failed
