"""`companion exec -- CMD …`: run a client with this session's address and key."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from companion_core.cli import Settings, drop_output, refuse
from companion_core.control.client import ask_running
from companion_core.decisions.client_environment import client_environment, set_aside, unkeepable
from companion_core.decisions.client_files import client_files
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.system.harmless_text import harmless

# As POSIX shells and env(1) have it.
EXIT_OWN_FAILURE: Final = 125
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127

# How many names the line on stderr has at most.
_NAMES_SHOWN: Final = 8


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--keep",
    "keep",
    multiple=True,
    metavar="NAME",
    help="Leave an inherited variable as it is; repeatable. Not the address or the key.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CMD...")
@click.pass_obj
def command(settings: Settings, arguments: tuple[str, ...], keep: tuple[str, ...]) -> int:
    """Run CMD with the address, the key and the model of this session.

    They stand under every name that clients read (OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL,
    ANTHROPIC_BASE_URL and others). Inherited variables that could lead CMD, its prompts or the
    token elsewhere are set aside, and stderr names them: another address, a vendor's key, a
    proxy of the client's own, a tracer. Loopback is added to NO_PROXY; nothing else changes and
    the token is never printed. Files that CMD reads are its own; where some are known to come
    first, stderr names them. docs/clients.md lists the names.

    CMD's descendants inherit the token. Exits with CMD's code; 125 to 127 are own failures.
    """
    try:
        session = _session(settings, arguments, keep)
    except CompanionError as error:
        refuse(error)
        return EXIT_OWN_FAILURE
    env = client_environment(
        os.environ, session["base_url"], session["token"], session.get("model"), keep=keep
    )
    if not settings.quiet:
        _tell(set_aside(os.environ, env))
        for line in told_files(arguments[0], Path(), _home()):
            _say(line)
    try:
        become(settings, arguments, env)
    except FileNotFoundError:
        click.echo(f"companion: {harmless(arguments[0])}: there is no such program", err=True)
        return EXIT_NOT_FOUND
    except OSError:
        click.echo(f"companion: {harmless(arguments[0])}: it cannot be run", err=True)
        return EXIT_NOT_EXECUTABLE


def _session(
    settings: Settings, arguments: tuple[str, ...], keep: tuple[str, ...]
) -> dict[str, Any]:
    if not arguments:
        raise UsageError(Reason.USAGE, "name the program to run after --")
    if refused := unkeepable(keep):
        raise UsageError(Reason.USAGE, f"{refused[0].upper()} is the session's own")
    return ask_running(settings.paths, settings.egress, "session")


def _tell(names: Sequence[str]) -> None:
    """Name what CMD does not inherit, without its value: a name may be of any bytes."""
    if not names:
        return
    shown = [n if n.isascii() and n.isidentifier() else ascii(n) for n in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    _say(f"set aside: {', '.join(shown)}{more}; exec --keep NAME leaves one as it is")


def told_files(program: str, folder: Path, home: Path | None) -> list[str]:
    """Say which files of the program come before its environment; none is opened.

    Args:
        program: as the person named it.
        folder: that it is started in.
        home: the person's; None without one.
    """
    files = client_files(program)
    name = Path(program).stem
    lead = f"; companion connect {files.connect} leads it here" if files.connect else ""
    if files.alone:
        return [f"{name} takes its address from its own settings alone{lead}"]
    lines = []
    for place in files.before:
        base, rest = (home, place[2:]) if place.startswith("~/") else (folder, place)
        with contextlib.suppress(OSError):
            if base is not None and (base / rest).is_file():
                lines.append(f"{name} reads {place} first: an address that stands there wins{lead}")
    return lines


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _say(line: str) -> None:
    try:
        click.echo(f"companion: {harmless(line)}", err=True)
    except OSError:  # nobody reads it, which is no reason not to run
        drop_output(sys.stderr)


def become(settings: Settings, arguments: tuple[str, ...], env: Mapping[str, str]) -> NoReturn:
    """Become the client, so that its exit code and its signals are its own."""
    settings.egress.replace_process(arguments, env)
