"""`companion models remove` and `prune`: what takes bytes out of the store."""

from __future__ import annotations

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.own_library import OwnLibrary, open_library
from companion_core.cli.running_models import RunningModel, running_models
from companion_core.cli.suggestions import model_ids
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import CompanionError, Reason, error_for

__all__ = ["prune", "remove"]

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
_yes = click.option("--yes", is_flag=True, help="Ask nothing.")


@click.command("remove")
@click.argument("model_id", metavar="ID", shell_complete=model_ids)
@_yes
@_as_json
@click.pass_obj
def remove(settings: Settings, *, model_id: str, yes: bool, as_json: bool) -> None:
    """Take a model of yours off your list, and its bytes out of the store.

    The file that you added stays where it is. Of a publisher's model only the bytes go; they can
    be fetched again.
    """
    for model in running_models(settings):
        if model.id == model_id:
            raise _in_use(settings, model)
    library = open_library(settings, as_json=as_json, yes=yes)
    try:
        known = run_cancellable(lambda cancelled: library.models.known.model(model_id, cancelled))
    except CompanionError as error:
        if error.reason is Reason.PERSONAL_KEY_MISSING:
            _forget(library, model_id, error, as_json=as_json)
            return
        if error.reason is not Reason.MODEL_ID_TAKEN:
            raise
    else:
        if known.vouched_by is ManifestKind.PERSONAL and not any(f.urls for f in known.files):
            library.ask(f"Remove {model_id}? Its bytes in the store have no source to come from.")
    freed = run_cancellable(lambda cancelled: library.models.remove(model_id, cancelled))
    document = {"id": model_id, "freed": freed}
    echo_result(document, f"{model_id}: {freed:,} bytes freed", as_json=as_json)


def _forget(library: OwnLibrary, model_id: str, error: CompanionError, *, as_json: bool) -> None:
    """Drop the whole list of a person whose key is lost: without it, the rest cannot be signed."""
    ids = library.models.claimed()
    if model_id not in ids:
        raise error
    told = (
        f"the key that signed your list is not here, so the list goes as a whole: {', '.join(ids)}"
    )
    if not library.yes and not library.can_ask:
        raise error_for(error.reason, f"{told}; --yes removes it")
    library.ask(f"{told[0].upper()}{told[1:]}. Remove all of it?")
    library.models.forget()
    freed = run_cancellable(library.models.prune)
    document = {"id": model_id, "removed": ids, "freed": freed}
    text = f"your list was removed ({', '.join(ids)}): {freed:,} bytes freed"
    echo_result(document, text, as_json=as_json)


@click.command("prune")
@_yes
@_as_json
@click.pass_obj
def prune(settings: Settings, *, yes: bool, as_json: bool) -> None:
    """Delete stored files that no list names, and downloads that were not finished."""
    for model in running_models(settings):
        raise _in_use(settings, model)
    library = open_library(settings, as_json=as_json, yes=yes)
    library.ask("Delete what no list names, and downloads that were not finished?")
    freed = run_cancellable(library.models.prune)
    echo_result({"freed": freed}, f"{freed:,} bytes freed", as_json=as_json)


def _in_use(settings: Settings, model: RunningModel) -> CompanionError:
    other = "" if model.instance == settings.instance else f" --instance {model.instance}"
    detail = f"{model.id} is served now; stop that first: companion down{other}"
    return error_for(Reason.MODEL_IN_USE, detail)
