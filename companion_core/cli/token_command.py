"""`companion token`: the session token, for a program that `companion exec` cannot start."""

from __future__ import annotations

import sys

import click

from companion_core.cli import Settings, echo_result, is_terminal
from companion_core.control.client import ask_running
from companion_core.errors import Reason, UsageError


@click.command("token")
@click.option("--reveal", is_flag=True, help="Print it even on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, reveal: bool, as_json: bool) -> None:
    """Print the session token; it changes at each start."""
    shown = reveal or not is_terminal(sys.stdout)
    answer = ask_running(settings.paths, settings.egress, "session" if shown else "status")
    if not shown:
        raise UsageError(
            Reason.USAGE, "a secret is not shown on a terminal; pipe it, or add --reveal"
        )
    echo_result({"ok": True, "token": answer["token"]}, answer["token"], as_json=as_json)
