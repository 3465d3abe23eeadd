"""`companion logout`: forget the session, and tell the sign-in service."""

from __future__ import annotations

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.account import require_account
from companion_core.cli.blocking import run_cancellable


@click.command("logout")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> None:
    """Sign out: remove the tokens from the keychain, then have the service end them.

    The tokens are removed whatever the service says. A running companion goes on with what it
    serves.
    """
    account = require_account(settings)
    revoked = run_cancellable(account.session.end)
    text = "signed out" if revoked else "signed out here; the service was not told"
    echo_result({"ok": True, "revoked": revoked}, text, as_json=as_json)
