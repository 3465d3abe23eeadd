"""`companion connect`: lead programs that people use here, by their own settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.cli import Settings, echo_result
from companion_core.cli.suggestions import model_ids
from companion_core.connect import PROGRAMS, Connections, Look, Places, Program, Wanted
from companion_core.control.client import ask_running
from companion_core.errors import CompanionError, Reason, UsageError, error_for
from companion_core.serving.default_model import with_default_model
from companion_core.serving.kept_port import kept_port
from companion_core.system.clock import wall_now
from companion_core.system.interpreter import running_interpreter

__all__ = ["command", "connections_of", "wanted_of"]


def _names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in PROGRAMS if name.startswith(incomplete)]


@click.command("connect")
@click.argument("client", required=False, metavar="[CLIENT]", shell_complete=_names)
@click.option("--check", is_flag=True, help="Only look; exit 3 if a connected one has drifted.")
@click.option("--remove", is_flag=True, help="Bring back what stood there before.")
@click.option(
    "--model",
    "model_id",
    metavar="ID",
    help="Ask for this model; else the served one.",
    shell_complete=model_ids,
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(
    settings: Settings,
    *,
    client: str | None,
    check: bool,
    remove: bool,
    model_id: str | None,
    as_json: bool,
) -> None:
    """Write this gateway into the settings of a program, so that it needs no `companion exec`.

    Without CLIENT, list the programs that are known and how each stands. Comments and order of a
    person's file stay; what is not understood, or was not written here, is never written over.
    A program that can run a command for its key asks for the session's token with each use;
    one that keeps a key gets one of its own, which companion keys list shows.

    --remove without CLIENT takes back every connection, as before an uninstall. docs/connect.md
    has each program's file and values.
    """
    if sum((check, remove, model_id is not None)) > 1:
        raise UsageError(Reason.USAGE, "--check, --remove and --model exclude each other")
    if client is not None and client not in PROGRAMS:
        raise UsageError(
            Reason.USAGE, f"{client!r} is no program that is known: {', '.join(PROGRAMS)}"
        )
    if model_id is not None and client is None:
        raise UsageError(Reason.USAGE, "name the program that asks for this model")
    connections = connections_of(settings)
    wanted = wanted_of(settings)
    if remove:
        _remove(connections, wanted, client, as_json=as_json)
    elif client is None or check:
        _look(connections, wanted, client, check=check, as_json=as_json)
    else:
        _connect(settings, connections, wanted, client, model_id, as_json=as_json)


def connections_of(settings: Settings) -> Connections:
    """Return the connections of this instance, for the person who runs this command."""
    paths = settings.paths
    paths.prepare()
    try:
        home = Path.home()
    except RuntimeError:
        raise UsageError(Reason.USAGE, "there is no home folder") from None
    places = Places(home=home, variables=os.environ, own=paths.connections)
    return Connections(places, ClientKeyFile(paths.client_keys, clock=wall_now))


def wanted_of(settings: Settings) -> Wanted:
    """Return where programs are to be led: to what runs, else to what the next start will be."""
    config, paths = settings.read_config(), settings.paths
    chosen = with_default_model(config, paths)
    port = config.gateway.port or kept_port(paths.port_file) or None
    model, context = chosen.model.id, config.runtime.context_length
    try:
        status = ask_running(paths, settings.egress, "status")
    except CompanionError:  # nothing runs, or it starts or ends at this moment
        status = {}
    if gateway := status.get("gateway"):
        port = int(gateway["url"].removesuffix("/v1").rpartition(":")[2])
    if served := status.get("model"):
        model = served["id"]
    if runtime := status.get("runtime"):
        context = runtime.get("context_length") or context
    program = (running_interpreter().program, "-P", "-m", "companion_core")
    command = (*program, *settings.root_arguments(), "token")
    return Wanted(port=port, model=model, context=context, token_command=command)


def _look(
    connections: Connections, wanted: Wanted, client: str | None, *, check: bool, as_json: bool
) -> None:
    names = PROGRAMS if client is None else (client,)
    looks = [connections.look(name, wanted) for name in names]
    drifted = check and any(each.connected and each.state != "ok" for each in looks)
    if not (drifted and as_json):
        lines = [_line(each) for each in looks]
        echo_result({"clients": [_row(each) for each in looks]}, "\n".join(lines), as_json=as_json)
    if check and client is not None and not looks[0].connected:
        raise UsageError(Reason.USAGE, f"{client} is not connected: companion connect {client}")
    if drifted:
        found = [f"{each.name}: {each.detail}" for each in looks if each.connected and each.detail]
        raise error_for(Reason.CLIENT_DRIFTED, "; ".join(found))


def _connect(
    settings: Settings,
    connections: Connections,
    wanted: Wanted,
    client: str,
    model_id: str | None,
    *,
    as_json: bool,
) -> None:
    program = PROGRAMS[client]
    done = connections.lead(client, wanted, model=model_id)
    _tell_running(settings)
    look = connections.look(client, wanted)
    document: dict[str, Any] = {
        "clients": [_row(look)],
        "changed": done.changed,
        "files": [str(path) for path in done.files],
        "values": list(done.values),
    }
    lines = [f"{program.title} leads to this gateway{'' if done.changed else ' already'}"]
    lines += [f"  {path}" for path in done.files]
    if done.values:
        lines.append(f"  sets {', '.join(done.values)}")
    if program.then and (done.key or "{key}" not in program.then):
        then = program.then.format(key=done.key.reveal(), file=done.files[0])
        document["then"] = then
        lines.append(f"  {then}")
    if done.changed:
        lines.append(f"  companion connect {client} --remove brings back what was there")
    echo_result(document, "\n".join(lines), as_json=as_json)
    if not settings.quiet:
        for note in _notes(program, look, wanted.context):
            click.echo(f"companion: {note}", err=True)


def _notes(program: Program, look: Look, context: int | None) -> list[str]:
    notes = []
    if not look.installed:
        command = program.commands[0]
        notes.append(f"{command} is not on PATH; it reads these settings once it is installed")
    if context is not None and context < program.first_request:
        notes.append(
            f"the first request of {program.title} takes up to {program.first_request:,} tokens,"
            f" and this model takes {context:,}: raise runtime.context_length, or serve another"
        )
    return notes


def _remove(connections: Connections, wanted: Wanted, client: str | None, *, as_json: bool) -> None:
    names = connections.connected() if client is None else (client,)
    lines, left = [], {}
    for name in names:
        done = connections.remove(name)
        if done is None:
            lines.append(f"{name} is not connected")
            continue
        lines.append(f"{PROGRAMS[name].title} is as it was before")
        left[name] = list(done.left)
        lines += [f"  {each} was changed since, and stays" for each in done.left]
    document = {
        "clients": [_row(connections.look(name, wanted)) for name in names],
        "left": left,
    }
    echo_result(document, "\n".join(lines) or "no program is connected", as_json=as_json)


def _tell_running(settings: Settings) -> None:
    """Have a companion that runs take a new key at once."""
    try:
        ask_running(settings.paths, settings.egress, "keys_changed")
    except CompanionError as error:
        if error.reason is not Reason.NOT_RUNNING:
            raise


def _row(look: Look) -> dict[str, Any]:
    return {
        "name": look.name,
        "installed": look.installed,
        "connected": look.connected,
        "state": look.state,
        "detail": look.detail,
    }


def _line(look: Look) -> str:
    title = PROGRAMS[look.name].title
    where = "installed" if look.installed else "not found"
    detail = f"  {look.detail}" if look.detail else ""
    return f"{look.name:12}  {title:12}  {where:10}  {look.state:8}{detail}".rstrip()
