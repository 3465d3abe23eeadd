"""Where a model that a person adds comes from: a file, an address, or a repository of a hub.

Each kind of source is one function of `_ADD`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from companion_core.cli.blocking import run_cancellable
from companion_core.cli.own_library import OwnLibrary
from companion_core.errors import Reason, Refused, UsageError
from companion_core.serving.library import AddedModel
from companion_core.serving.own_files import FoundModelFiles, fit_of, look_at

__all__ = ["Kind", "Wanted", "add_model", "kind_of", "look_at_file", "take_files"]

Kind: TypeAlias = Literal["file", "address", "hub"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SHOWN_FILES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asks to be added.

    Attributes:
        source: a file, an https address, or `hf:OWNER/REPO[:QUANT]`.
        model_id: what requests shall call it; None for its own name.
        projector: the file through which the model sees or hears.
        file: of a repository: the file to take.
        revision: of a repository.
    """

    source: str
    model_id: str | None = None
    projector: Path | None = None
    file: str | None = None
    revision: str | None = None


def kind_of(source: str) -> Kind:
    """Tell a file, an address and a repository apart by their spelling alone."""
    if source.startswith("hf:"):
        return "hub"
    return "address" if _SCHEME.match(source) else "file"


def add_model(library: OwnLibrary, wanted: Wanted) -> AddedModel:
    """Add a model of any kind of source. Blocks.

    Raises:
        CompanionError: why it is not added; nothing of it is left.
        KeyboardInterrupt: the person stopped it; the same.
    """
    return _ADD[kind_of(wanted.source)](library, wanted)


def _add_file(library: OwnLibrary, wanted: Wanted) -> AddedModel:
    return take_files(library, look_at_file(wanted))


def look_at_file(wanted: Wanted) -> FoundModelFiles:
    """Return what is at the path that was named.

    Raises:
        UsageError: it is no file.
        CompanionError: as `look_at`.
    """
    for option, value in (("--file", wanted.file), ("--revision", wanted.revision)):
        if value is not None:
            raise UsageError(Reason.USAGE, f"{option} is for a repository (hf:OWNER/REPO)")
    path = Path(wanted.source).expanduser()
    if path.is_dir():
        files = sorted(each.name for each in path.glob("*.[gG][gG][uU][fF]"))
        inside = f"; in it: {', '.join(files[:_SHOWN_FILES])}" if files else ""
        raise UsageError(Reason.USAGE, f"{path} is a folder; name a GGUF file{inside}")
    if not path.exists():
        raise UsageError(Reason.USAGE, f"{path} is no file on this machine")
    return look_at(path, model_id=wanted.model_id, projector=wanted.projector)


def take_files(library: OwnLibrary, found: FoundModelFiles) -> AddedModel:
    """Take files into the store and sign for them; see `add_model`."""
    library.require_fit(found.id, fit_of(library.config, found.head, found.size))
    tell = library.progress("add", found.id)
    with library.key_told():
        return run_cancellable(
            lambda cancelled: library.models.add_files(found, progress=tell, cancelled=cancelled)
        )


def _add_address(_library: OwnLibrary, wanted: Wanted) -> AddedModel:
    scheme = _SCHEME.match(wanted.source)
    if scheme is not None and scheme[1].lower() != "https":
        raise Refused(Reason.SCHEME_NOT_ALLOWED, f"{scheme[1]}:// is not used; name a file")
    raise UsageError(
        Reason.USAGE, "an address cannot be added yet; fetch the file yourself, and name the file"
    )


def _add_repository(_library: OwnLibrary, _wanted: Wanted) -> AddedModel:
    raise UsageError(
        Reason.USAGE,
        "a repository cannot be added yet; fetch a GGUF file of it yourself, and name the file",
    )


_ADD: Final[Mapping[Kind, Callable[[OwnLibrary, Wanted], AddedModel]]] = MappingProxyType(
    {"file": _add_file, "address": _add_address, "hub": _add_repository}
)
