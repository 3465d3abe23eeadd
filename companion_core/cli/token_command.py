"""`companion token`: the session token, for programs that cannot be run by `companion exec`."""

from __future__ import annotations

import sys

import click

from companion_core.cli import Settings, echo_result, is_terminal
from companion_core.control import ask, find_running
from companion_core.errors import CompanionError, Reason, UsageError


@click.command("token")
@click.option("--reveal", is_flag=True, help="Print it even on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, reveal: bool, as_json: bool) -> None:
    """Print the session token; it changes at each start."""
    running = find_running(settings.paths, settings.egress)
    if running is None:
        raise CompanionError(Reason.NOT_RUNNING)
    if is_terminal(sys.stdout) and not reveal:
        raise UsageError(
            Reason.USAGE, "a secret is not shown on a terminal; pipe it, or add --reveal"
        )
    token = ask(running, settings.egress, "session")["token"]
    echo_result({"ok": True, "token": token}, token, as_json=as_json)
