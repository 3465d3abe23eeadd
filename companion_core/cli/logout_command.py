"""`companion logout`: forget the session, and tell the sign-in service."""

from __future__ import annotations

from typing import Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.account import require_account
from companion_core.cli.blocking import run_cancellable

# By whether the service took notice; None if nobody was signed in.
_TEXTS: Final = {
    True: "signed out",
    False: "signed out here; the service did not end the tokens, which it does when they expire",
    None: "nobody was signed in",
}


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
    document = {"ok": True, "revoked": bool(revoked)}
    echo_result(document, _TEXTS[revoked], as_json=as_json)
