"""`companion models`: the models that a person has, a publisher's and their own."""

from __future__ import annotations

import json
from typing import Any

import click

from companion_core.cli import Settings, echo_result, refuse
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.hub_access import hub_token_option, pull_model
from companion_core.cli.model_sources import (
    Wanted,
    add_model,
    source_options,
)
from companion_core.cli.model_words import describe_added, proves, row_of, word_of
from companion_core.cli.models_removal import prune, remove
from companion_core.cli.own_library import OwnLibrary, open_library
from companion_core.cli.running_models import running_models
from companion_core.cli.suggestions import model_ids
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.serving.known_models import KnownModel
from companion_core.serving.own_files import fit_of

__all__ = ["command"]

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
_yes = click.option("--yes", is_flag=True, help="Ask nothing.")
_id = click.argument("model_id", metavar="ID", shell_complete=model_ids)


@click.group("models")
def command() -> None:
    """List, add, prove and remove models: a publisher's, and your own."""


@command.command("add")
@click.argument("source")
@source_options
@_yes
@_as_json
@click.pass_obj
def add(settings: Settings, /, *, yes: bool, as_json: bool, **wanted: Any) -> None:
    """Record a model of your own, so that it can be served.

    SOURCE is a GGUF file (of a split model any part), which is taken into the store and left as
    it is; an https address of one; or hf:OWNER/REPO[:QUANT], a repository of a model hub (at
    HF_ENDPOINT, else huggingface.co), of which Q4_K_M is taken where nothing is named. A list
    that your own key signs says which bytes it has.
    """
    library = open_library(settings, as_json=as_json, yes=yes)
    added = add_model(library, Wanted(**wanted))
    library.printer.clear()
    text, document = describe_added(library, added)
    way_on = f"\nServe it: companion up --model {added.id}"
    echo_result(document, text + way_on, as_json=as_json)


@command.command("list")
@_as_json
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every model, who vouches for it, and whether it is stored."""
    library = open_library(settings, as_json=as_json)
    known = run_cancellable(library.models.known.models)
    running = running_models(settings)
    rows = [row_of(model, running) for model in known]
    width = max((len(row["id"]) for row in rows), default=0)
    lines = [
        f"{row['id']:{width}}  {row['vouched_by']:9}  {row['state']:8}  "
        f"{row['size'] / 1e6:10,.1f} MB{'  default' if row['default'] else ''}"
        for row in rows
    ]
    nothing = "there is no model yet: companion models add ./model.gguf"
    echo_result({"models": rows}, "\n".join(lines) or nothing, as_json=as_json)


@command.command("show")
@_id
@_as_json
@click.pass_obj
def show(settings: Settings, *, model_id: str, as_json: bool) -> None:
    """Show everything that is known of a model."""
    library = open_library(settings, as_json=as_json)
    model = run_cancellable(lambda cancelled: library.models.known.model(model_id, cancelled))
    document = {
        **row_of(model, running_models(settings)),
        "licence": model.licence,
        "origin": model.origin,
        "added": model.added,
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256, "role": file.role.value}
            for file in model.files
        ],
    }
    told = {key: value for key, value in document.items() if key != "files" and value is not None}
    lines = [f"{key:15} {word_of(value)}" for key, value in told.items() if value != ""]
    lines += [
        f"{'file':15} {file.name}, {file.size:,} bytes, {file.role.value}, SHA-256 {file.sha256}"
        for file in model.files
    ]
    if model.vouched_by is ManifestKind.PERSONAL:
        lines.append(proves(model.added))
    echo_result(document, "\n".join(lines), as_json=as_json)


@command.command("pull")
@_id
@hub_token_option
@_yes
@_as_json
@click.pass_obj
def pull(settings: Settings, *, model_id: str, hub_token: bool, yes: bool, as_json: bool) -> None:
    """Fetch a model's bytes and prove them, without serving it.

    A download that was stopped goes on where it was.
    """
    library = open_library(settings, as_json=as_json, yes=yes)
    model = run_cancellable(lambda cancelled: library.models.known.model(model_id, cancelled))
    library.require_fit(model.id, fit_of(library.config, model.head, model.size))
    pull_model(library, model, hub_token=hub_token)
    library.printer.clear()
    document = {"id": model.id, "size": model.size, "new": not model.stored}
    was = "stored and proved" if not model.stored else "it was stored, and is proved again"
    echo_result(document, f"{model.id}: {model.size:,} bytes, {was}", as_json=as_json)


@command.command("verify")
@click.argument("model_id", metavar="[ID]", required=False, shell_complete=model_ids)
@_as_json
@click.pass_obj
def verify(settings: Settings, *, model_id: str | None, as_json: bool) -> int:
    """Hash every stored file again.

    Without ID, every stored model; if all of your own are what you recorded, your list holds for
    another year from now.
    """
    library = open_library(settings, as_json=as_json)
    if model_id is None:
        known = run_cancellable(library.models.known.models)
    else:
        known = [run_cancellable(lambda stop: library.models.known.model(model_id, stop))]
    stored = [model for model in known if model.stored]
    if model_id is not None and not stored:
        raise error_for(Reason.NOT_VERIFIED, f"{model_id} is not stored: companion models pull")
    found = {model.id: _verify(library, model) for model in stored}
    library.printer.clear()
    wrong = next((error for error in found.values() if error is not None), None)
    own = [model for model in known if model.vouched_by is ManifestKind.PERSONAL]
    renewed = model_id is None and bool(own) and wrong is None and all(m.stored for m in own)
    if renewed:
        library.models.renew()
    rows = [_row(name, error) for name, error in found.items()]
    lines = [f"{row['id']:40} {row['reason']}" for row in rows]
    if renewed:
        lines.append("your list holds for another year")
    elif model_id is None and wrong is None and not all(model.stored for model in own):
        lines.append("your list is not renewed: a model of yours is not stored")
    document: dict[str, Any] = {"models": rows, "renewed": renewed}
    if wrong is None:
        echo_result(document, "\n".join(lines) or "no model is stored", as_json=as_json)
        return 0
    error = error_for(wrong.reason, _way_back(stored, found))
    refusal = {"ok": False, "reason": wrong.reason.value, "advice": error.advice}
    click.echo(json.dumps({**refusal, **document}) if as_json else "\n".join(lines))
    return refuse(error)


def _verify(library: OwnLibrary, model: KnownModel) -> CompanionError | None:
    tell = library.progress("verify", model.id)
    return run_cancellable(lambda cancelled: library.models.verify(model, cancelled, progress=tell))


def _row(model_id: str, error: CompanionError | None) -> dict[str, Any]:
    row = {"id": model_id, "reason": (Reason.OK if error is None else error.reason).value}
    return row if error is None or not error.detail else {**row, "detail": error.detail}


def _way_back(models: list[KnownModel], found: dict[str, CompanionError | None]) -> str:
    """Say of each model that is wrong what is, and how its right bytes come back."""
    ways = []
    for model in models:
        if (error := found[model.id]) is None:
            continue
        mine = model.vouched_by is ManifestKind.PERSONAL
        if all(file.urls for file in model.files):
            way = f"companion models pull {model.id} fetches what is wrong"
        else:
            way = f"companion models remove {model.id}, and add it again from a file that you trust"
        since = "changed since you recorded it; " if mine else ""
        ways.append(f"{model.id}: {error.detail}; {since}{way}")
    return "\n".join(ways)


@command.command("default")
@_id
@_as_json
@click.pass_obj
def default(settings: Settings, *, model_id: str, as_json: bool) -> None:
    """Serve this model where none is named."""
    library = open_library(settings, as_json=as_json)
    run_cancellable(lambda cancelled: library.models.set_default(model_id, cancelled))
    configured = library.config.model.id
    if configured is not None:
        text = f"model.id in {settings.config} names {configured}, which counts before this default"
        click.echo(f"companion: {text}", err=True)
    echo_result({"default": model_id}, f"{model_id} is the default", as_json=as_json)


command.add_command(remove)
command.add_command(prune)
