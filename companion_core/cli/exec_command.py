"""`companion exec -- CMD …`: run a client with this session's address and key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from companion_core.cli import Settings, refuse
from companion_core.control.client import ask_running
from companion_core.errors import CompanionError, Reason, UsageError

# As POSIX shells and env(1) have it.
EXIT_OWN_FAILURE: Final = 125
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127

LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "::1")


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CMD...")
@click.pass_obj
def command(settings: Settings, arguments: tuple[str, ...]) -> int:
    """Run CMD with OPENAI_BASE_URL and OPENAI_API_KEY of this session.

    Loopback is added to NO_PROXY; nothing else changes and the token is never printed.
    CMD's descendants inherit the token. Exits with CMD's code; 125 to 127 are own failures.
    """
    try:
        session = _session(settings, arguments)
    except CompanionError as error:
        refuse(error)
        return EXIT_OWN_FAILURE
    env = client_environment(os.environ, session["base_url"], session["token"])
    try:
        become(settings, arguments, env)
    except FileNotFoundError:
        click.echo(f"companion: {arguments[0]}: there is no such program", err=True)
        return EXIT_NOT_FOUND
    except OSError:
        click.echo(f"companion: {arguments[0]}: it cannot be run", err=True)
        return EXIT_NOT_EXECUTABLE


def _session(settings: Settings, arguments: tuple[str, ...]) -> dict[str, Any]:
    if not arguments:
        raise UsageError(Reason.USAGE, "name the program to run after --")
    return ask_running(settings.paths, settings.egress, "session")


def become(settings: Settings, arguments: tuple[str, ...], env: Mapping[str, str]) -> NoReturn:
    """Become the client, so that its exit code and its signals are its own."""
    settings.egress.replace_process(arguments, env)


def client_environment(env: Mapping[str, str], base_url: str, token: str) -> dict[str, str]:
    """Return `env` with the session in it and loopback kept from any proxy (I-17)."""
    changed = {**env, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": token}
    for name, other in (("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")):
        # Programs read one of the two: a new one must not hide what the other says.
        hosts = [host for host in env.get(name, env.get(other, "")).split(",") if host.strip()]
        if hosts == ["*"]:  # no proxy for anything, as long as it stands alone
            changed[name] = "*"
            continue
        changed[name] = ",".join([*hosts, *(h for h in LOOPBACK_HOSTS if h not in hosts)])
    return changed
