"""`companion models`: the models that a person has, a publisher's and their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.foreground import harden_process
from companion_core.cli.progress import StepPrinter
from companion_core.control.client import ask_running
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason, UsageError, error_for
from companion_core.serving.library import KnownModel, ModelLibrary
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_list import open_own_list_alone
from companion_core.serving.step import Step
from companion_core.system.clock import wall_now

_NEVER: Final = threading.Event()
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
# What adding a model proves, for a person.
_PROVES: Final = (
    "Recorded in your name: each start proves that these are the bytes you added now. "
    "Nothing is proved about who made them."
)
_FILES_ALONE: Final = "is no file; name a GGUF file on this machine"


@click.group("models")
def command() -> None:
    """List, add, prove and remove models: a publisher's, and your own."""


@command.command("add")
@click.argument("source")
@click.option("--id", "model_id", metavar="ID", help="What requests call it; else its file's name.")
@click.option(
    "--projector",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The file through which the model sees or hears.",
)
@_as_json
@click.pass_obj
def add(
    settings: Settings, *, source: str, model_id: str | None, projector: Path | None, as_json: bool
) -> None:
    """Record a GGUF file of yours, so that it can be served.

    SOURCE is the file; of a split model its first part. It is taken into the store and left as
    it is. A list that your own key signs says which bytes it has.
    """
    path = Path(source)
    if not path.is_file():
        raise UsageError(Reason.USAGE, f"{source} {_FILES_ALONE}")
    library = _library(settings)
    tell = _progress(settings, "add", path.name)
    added = library.add_file(
        path, model_id=model_id, projector=projector, progress=tell, cancelled=_NEVER
    )
    document = {
        "id": added.id,
        "size": added.size,
        "licence": added.licence,
        "context_length": added.context_length,
        "vouched_by": "you",
        "new": not added.was_known,
    }
    licence = f", licence {added.licence}" if added.licence else ", no licence stated"
    text = f"{added.id}: {added.size:,} bytes{licence}\n{_PROVES}\nServe it: companion up --model "
    echo_result(document, f"{text}{added.id}", as_json=as_json)


@command.command("list")
@_as_json
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every model, who vouches for it, and whether it is stored."""
    running = _served(settings)
    rows = [_row(model, running) for model in _library(settings).models(_NEVER)]
    lines = [
        f"{row['id']:40} {row['vouched_by']:9} {row['state']:8} {row['size'] / 1e6:10,.1f} MB"
        f"{'  default' if row['default'] else ''}"
        for row in rows
    ]
    nothing = "there is no model yet: companion models add ./model.gguf"
    echo_result({"models": rows}, "\n".join(lines) or nothing, as_json=as_json)


@command.command("show")
@click.argument("model_id", metavar="ID")
@_as_json
@click.pass_obj
def show(settings: Settings, *, model_id: str, as_json: bool) -> None:
    """Show everything that is known of a model."""
    model = _library(settings).model(model_id, _NEVER)
    document = {
        **_row(model, _served(settings)),
        "licence": model.licence,
        "origin": model.origin,
        "added": model.added,
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256, "role": file.role.value}
            for file in model.files
        ],
    }
    lines = [f"{key:15} {value}" for key, value in document.items() if key != "files"]
    lines += [
        f"{'file':15} {file.name}, {file.size:,} bytes, {file.role.value}, SHA-256 {file.sha256}"
        for file in model.files
    ]
    echo_result(document, "\n".join(lines), as_json=as_json)


@command.command("verify")
@click.argument("model_id", metavar="[ID]", required=False)
@_as_json
@click.pass_obj
def verify(settings: Settings, *, model_id: str | None, as_json: bool) -> None:
    """Hash every stored file again.

    Without ID, every stored model; if all of your own are what you recorded, your list holds for
    another year from now.
    """
    library = _library(settings)
    known = library.models(_NEVER) if model_id is None else [library.model(model_id, _NEVER)]
    stored = [model for model in known if model.stored]
    if model_id is not None and not stored:
        raise error_for(Reason.NOT_VERIFIED, f"{model_id} is not stored")
    found: dict[str, Reason] = {}
    for model in stored:
        tell = _progress(settings, "verify", model.id)
        found[model.id] = library.verify(model, _NEVER, progress=tell)
    wrong = [reason for reason in found.values() if reason is not Reason.OK]
    own = [model for model in known if model.vouched_by.value == "you"]
    renewed = model_id is None and bool(own) and not wrong and all(m.stored for m in own)
    if renewed:
        library.renew()
    rows = [{"id": name, "reason": reason.value} for name, reason in found.items()]
    lines = [f"{row['id']:40} {row['reason']}" for row in rows]
    if renewed:
        lines.append("your list holds for another year")
    document = {"models": rows, "renewed": renewed}
    echo_result(document, "\n".join(lines) or "no model is stored", as_json=as_json)
    if wrong:
        raise error_for(wrong[0])


@command.command("remove")
@click.argument("model_id", metavar="ID")
@_as_json
@click.pass_obj
def remove(settings: Settings, *, model_id: str, as_json: bool) -> None:
    """Take a model of yours off your list, and its bytes out of the store.

    Of a publisher's model only the bytes go; they can be fetched again.
    """
    if _served(settings) == model_id:
        raise error_for(Reason.MODEL_IN_USE, f"{model_id} is served now: companion down")
    freed = _library(settings).remove(model_id, _NEVER)
    document = {"id": model_id, "freed": freed}
    echo_result(document, f"{model_id}: {freed:,} bytes freed", as_json=as_json)


@command.command("prune")
@_as_json
@click.pass_obj
def prune(settings: Settings, *, as_json: bool) -> None:
    """Delete stored files that no list names, and downloads that were not finished."""
    if _served(settings) is not None:
        raise error_for(Reason.MODEL_IN_USE, "a companion runs: companion down")
    freed = _library(settings).prune(_NEVER)
    echo_result({"freed": freed}, f"{freed:,} bytes freed", as_json=as_json)


@command.command("default")
@click.argument("model_id", metavar="ID")
@_as_json
@click.pass_obj
def default(settings: Settings, *, model_id: str, as_json: bool) -> None:
    """Serve this model where none is named."""
    _library(settings).set_default(model_id, _NEVER)
    echo_result({"default": model_id}, f"{model_id} is the default", as_json=as_json)


def _library(settings: Settings) -> ModelLibrary:
    harden_process()
    config, paths = settings.read_config(), settings.paths
    paths.prepare()
    own = open_own_list_alone(config, paths, settings.egress)
    context = build_tls_context(config.network.extra_ca_file)
    lists = ModelLists(config, paths, settings.egress, context, own, clock=wall_now)
    return ModelLibrary(paths, lists, own)


def _served(settings: Settings) -> str | None:
    """Return the id of the model that a running companion has; None if none runs."""
    try:
        status = ask_running(settings.paths, settings.egress, "status")
    except CompanionError as error:
        if error.reason is Reason.NOT_RUNNING:
            return None
        raise
    model = status.get("model")
    return str(model["id"]) if isinstance(model, dict) else None


def _row(model: KnownModel, served: str | None) -> dict[str, Any]:
    state = "unloaded" if model.stored else "absent"
    return {
        "id": model.id,
        "vouched_by": model.vouched_by.value,
        "format": model.format,
        "size": model.size,
        "stored": model.stored,
        "state": "ready" if model.id == served else state,
        "context_length": model.context_length,
        "default": model.is_default,
    }


def _progress(settings: Settings, name: str, what: str) -> Callable[[int, int], None]:
    printer = StepPrinter(quiet=settings.quiet)
    return lambda done, total: printer(Step(name, what, done, total))
