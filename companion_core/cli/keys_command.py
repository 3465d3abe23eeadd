"""`companion keys`: keys for programs that keep one in their settings."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.cli import Settings, echo_result
from companion_core.cli.suggestions import client_names
from companion_core.config.sections import is_model_id
from companion_core.control.client import ask_running
from companion_core.decisions.client_key import MAX_PER_MINUTE
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.system.clock import wall_now

__all__ = ["command"]

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group("keys")
def command() -> None:
    """Give a program a key of its own, see what has one, and take it back.

    The session's token changes at each start, and `companion exec` hands it to a program. A program
    that keeps a key in its settings gets one of its own instead: it stays until it is revoked.
    """


@command.command("add")
@click.argument("name")
@click.option("--models", metavar="ID,…", help="The models it may ask for; else all.")
@click.option(
    "--rpm",
    "requests_per_minute",
    type=click.IntRange(1, MAX_PER_MINUTE),
    help="Requests a minute; else gateway.requests_per_minute.",
)
@click.option("--delegate", is_flag=True, help="It acts for somebody else than you.")
@_as_json
@click.pass_obj
def add(
    settings: Settings,
    /,
    *,
    name: str,
    models: str | None,
    requests_per_minute: int | None,
    delegate: bool,
    as_json: bool,
) -> None:
    """Make a key for the program NAME and print it, the only time that it is shown.

    The program sends it as its API key (Bearer, or x-api-key).
    """
    key = _file(settings).add(
        name,
        models=_models(models),
        requests_per_minute=requests_per_minute,
        delegate=delegate,
    )
    _tell(settings)
    echo_result({"name": name, "key": key.reveal()}, key.reveal(), as_json=as_json)
    if not as_json and not settings.quiet:
        click.echo(
            "companion: it is not shown again; companion keys revoke takes it back", err=True
        )


@command.command("list")
@_as_json
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List the keys and when each was used last."""
    with contextlib.suppress(CompanionError):  # nothing runs, or it ends at this moment
        ask_running(settings.paths, settings.egress, "keys_used")
    file = _file(settings)
    used = file.last_used()
    rows: list[dict[str, Any]] = [
        {
            "name": key.name,
            "created": key.created,
            "last_used": used.get(key.name),
            "models": None if key.models is None else list(key.models),
            "requests_per_minute": key.requests_per_minute,
            "delegate": key.delegate,
        }
        for key in file.read()
    ]
    lines = [
        f"{row['name']:32}  made {row['created']}  last used {row['last_used'] or 'never'}"
        f"{_limits(row)}"
        for row in rows
    ]
    nothing = "no program has a key of its own: companion keys add NAME"
    echo_result({"keys": rows}, "\n".join(lines) or nothing, as_json=as_json)


@command.command("revoke")
@click.argument("name", required=False, shell_complete=client_names)
@click.option("--all", "every", is_flag=True, help="Every key, also where the list is damaged.")
@_as_json
@click.pass_obj
def revoke(settings: Settings, *, name: str | None, every: bool, as_json: bool) -> None:
    """Take a key back: from now on it opens nothing, and answers that run with it end."""
    if every == (name is not None):
        raise UsageError(Reason.USAGE, "name a key, or --all")
    if name is None:
        _file(settings).forget()
    else:
        _file(settings).revoke(name)
    _tell(settings)
    echo_result({"revoked": name or "all"}, f"{name or 'every key'} is revoked", as_json=as_json)


def _file(settings: Settings) -> ClientKeyFile:
    paths = settings.paths
    paths.prepare()
    return ClientKeyFile(paths.client_keys, clock=wall_now)


def _tell(settings: Settings) -> None:
    """Have a companion that runs take the change at once."""
    try:
        ask_running(settings.paths, settings.egress, "keys_changed")
    except CompanionError as error:
        if error.reason is not Reason.NOT_RUNNING:
            raise


def _models(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    models = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for each in models:
        if not is_model_id(each):
            raise UsageError(Reason.USAGE, f"{each!r} cannot be a model's id")
    if not models:
        raise UsageError(Reason.USAGE, "--models names no model")
    return models


def _limits(row: dict[str, Any]) -> str:
    parts = []
    if row["models"] is not None:
        parts.append(f"models {', '.join(row['models'])}")
    if row["requests_per_minute"] is not None:
        parts.append(f"{row['requests_per_minute']} requests a minute")
    if row["delegate"]:
        parts.append("a delegate's")
    return "".join(f"  {part}" for part in parts)
