"""What is told of a model: as a row of a document, and in words."""

from __future__ import annotations

from typing import Any, Final

from companion_core.cli.own_library import OwnLibrary
from companion_core.cli.running_models import RunningModel
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.serving.additions import AddedModel
from companion_core.serving.known_models import KnownModel
from companion_core.serving.own_files import fit_of, told_fit

__all__ = ["describe_added", "proves", "row_of", "word_of"]

_DATE: Final = len("2026-01-01")


def describe_added(library: OwnLibrary, added: AddedModel) -> tuple[str, dict[str, Any]]:
    """Say what was recorded, and what that proves and does not prove."""
    fit = fit_of(library.config, added.head, added.size)
    document = {
        "id": added.id,
        "size": added.size,
        "licence": added.licence,
        "context_length": added.context_length,
        "vouched_by": ManifestKind.PERSONAL.value,
        "new": not added.was_known,
        "added": added.added,
        "fit": {
            "fits": fit.fits,
            "context": fit.context,
            "needed_bytes": fit.needed,
            "available_bytes": fit.available,
        },
    }
    licence = f"licence {added.licence}" if added.licence else "no licence stated"
    text = (
        f"{added.id}: {added.size:,} bytes, {licence}\n"
        f"{proves(added.added)}\n"
        f"On this machine {told_fit(fit)}."
    )
    return text, document


def proves(added: str) -> str:
    """Say what a record of that day proves, and what not."""
    return (
        "Signed in your name: each start proves that these are the bytes you recorded on "
        f"{added[:_DATE]}, and nothing about who made them."
    )


def row_of(model: KnownModel, running: list[RunningModel]) -> dict[str, Any]:
    """Return what `companion models list --json` says of a model."""
    states = {each.state for each in running if each.id == model.id}
    at_rest = "unloaded" if model.stored else "absent"
    return {
        "id": model.id,
        "vouched_by": model.vouched_by.value,
        "format": model.format,
        "size": model.size,
        "stored": model.stored,
        "state": "ready" if "ready" in states else "loading" if states else at_rest,
        "context_length": model.context_length,
        "default": model.is_default,
    }


def word_of(value: object) -> str:
    """Return a fact for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
