"""Where a model that a person adds comes from: a file, an address, or a repository of a hub.

Each kind of source is one function of `_ADD`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar

import click

from companion_core.cli.blocking import run_cancellable
from companion_core.cli.hub_access import hub_token_option, open_hub
from companion_core.cli.own_library import OwnLibrary
from companion_core.decisions.hub import parse_hub_name
from companion_core.errors import Reason, Refused, UsageError
from companion_core.models.byte_pump import Pace
from companion_core.models.transfer import Download
from companion_core.serving.additions import AddedModel, Fetching
from companion_core.serving.own_files import FoundModelFiles, fit_of, look_at
from companion_core.serving.remote_files import (
    HUB_PACE,
    FoundRemote,
    HubDownload,
    look_at_address,
    look_in_hub,
)
from companion_core.serving.step import Step

__all__ = [
    "SOURCE_OPTIONS",
    "Kind",
    "Wanted",
    "add_model",
    "kind_of",
    "look_at_file",
    "recorded_source",
    "source_options",
    "take_files",
]

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
        hub_token: send the person's token to the hub.
    """

    source: str
    model_id: str | None = None
    projector: Path | None = None
    file: str | None = None
    revision: str | None = None
    hub_token: bool = False


C = TypeVar("C", bound=Callable[..., Any])

# What `source_options` adds, by the names of `Wanted`.
SOURCE_OPTIONS: Final = ("model_id", "file", "revision", "hub_token", "projector")


def source_options(function: C) -> C:
    """Give a command the options of a source; they are fields of `Wanted`."""
    for option in (
        click.option(
            "--projector",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="The file through which the model sees or hears.",
        ),
        hub_token_option,
        click.option("--revision", metavar="REV", help="Of a repository: a branch, tag or commit."),
        click.option("--file", "file", metavar="NAME", help="Of a repository: the file to take."),
        click.option(
            "--id", "model_id", metavar="ID", help="What requests call it; else its file's name."
        ),
    ):
        function = option(function)
    return function


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
    _refuse_options(wanted, "a repository (hf:OWNER/REPO)", "--file", "--revision", "--hub-token")
    path = Path(wanted.source).expanduser()
    if path.is_dir():
        files = sorted(each.name for each in path.glob("*.[gG][gG][uU][fF]"))
        inside = f"; in it: {', '.join(files[:_SHOWN_FILES])}" if files else ""
        raise UsageError(Reason.USAGE, f"{path} is a folder; name a GGUF file{inside}")
    if not path.exists():
        raise UsageError(Reason.USAGE, f"{path} is no file on this machine")
    return look_at(path, model_id=wanted.model_id, projector=wanted.projector)


def _refuse_options(wanted: Wanted, kind: str, *options: str) -> None:
    """Refuse options that are for another kind of source."""
    for option in options:
        if getattr(wanted, option.strip("-").replace("-", "_")):
            raise UsageError(Reason.USAGE, f"{option} is for {kind}")


def take_files(library: OwnLibrary, found: FoundModelFiles) -> AddedModel:
    """Take files into the store and sign for them; see `add_model`."""
    library.require_fit(found.id, fit_of(library.config, found.head, found.size))
    tell = library.progress("add", found.id)
    with library.key_told():
        return run_cancellable(
            lambda cancelled: library.models.additions.add_files(
                found, progress=tell, cancelled=cancelled
            )
        )


def _add_address(library: OwnLibrary, wanted: Wanted) -> AddedModel:
    scheme = _SCHEME.match(wanted.source)
    if scheme is not None and scheme[1].lower() != "https":
        raise Refused(Reason.SCHEME_NOT_ALLOWED, f"{scheme[1]}:// is not used; name a file")
    _refuse_options(wanted, "a repository (hf:OWNER/REPO)", "--file", "--revision", "--hub-token")
    _refuse_options(wanted, "a file", "--projector")
    chosen = library.downloader()

    def look(cancelled: threading.Event) -> FoundRemote:
        return look_at_address(
            wanted.source,
            model_id=wanted.model_id,
            download=chosen.provider.open,
            plugin=chosen.plugin,
            cancelled=cancelled,
        )

    return _fetch(library, wanted, look, download=chosen.provider.open, plugin=chosen.plugin)


def _add_repository(library: OwnLibrary, wanted: Wanted) -> AddedModel:
    name = parse_hub_name(wanted.source)
    if name is None:
        raise UsageError(Reason.USAGE, f"{wanted.source} is not of the form hf:OWNER/REPO[:QUANT]")
    _refuse_options(wanted, "a file", "--projector")
    hub = open_hub(library, hub_token=wanted.hub_token)
    chosen = library.downloader()
    download = HubDownload(hub, chosen.provider.open)

    def look(cancelled: threading.Event) -> FoundRemote:
        return look_in_hub(
            hub,
            name,
            model_id=wanted.model_id,
            file=wanted.file,
            revision=wanted.revision,
            download=download,
            plugin=chosen.plugin,
            cancelled=cancelled,
        )

    return _fetch(library, wanted, look, download=download, plugin=chosen.plugin, pace=HUB_PACE)


def recorded_source(library: OwnLibrary, wanted: Wanted) -> str | None:
    """Return the id under which an address or a repository was added before; None if it was not.

    Nothing is asked of any host. Bytes that are missing are fetched by the start, which has no
    token; with one, only what is stored counts.
    """
    with library.key_told():
        found = library.models.known.asked_for(_asked(wanted), stored=wanted.hub_token)
    return found if wanted.model_id in {None, found} else None


def _asked(wanted: Wanted) -> str:
    """Return what was asked for as one text; another hub has other files of the same name."""
    hub = os.environ.get("HF_ENDPOINT", "") if kind_of(wanted.source) == "hub" else ""
    named = {"--file": wanted.file, "--revision": wanted.revision, "HF_ENDPOINT": hub}
    return " ".join([wanted.source, *(f"{key}={value}" for key, value in named.items() if value)])


def _fetch(
    library: OwnLibrary,
    wanted: Wanted,
    look: Callable[[threading.Event], FoundRemote],
    *,
    download: Download,
    plugin: str,
    pace: Pace | None = None,
) -> AddedModel:
    """Look at what is to be fetched, say what a person should know, fetch it and sign for it."""
    library.printer(Step("look", "asking for its first bytes"))
    found = replace(run_cancellable(look), asked=_asked(wanted))
    library.printer.clear()
    for line in found.told:
        library.say(line)
    library.models.additions.require_room(found)
    library.require_fit(found.id, fit_of(library.config, found.head, found.size))
    tell = library.progress("download", found.id)
    with library.key_told():
        return run_cancellable(
            lambda cancelled: library.models.additions.add_remote(
                found,
                Fetching(
                    download=download,
                    plugin=plugin,
                    progress=tell,
                    cancelled=cancelled,
                    pace=pace,
                ),
            )
        )


_ADD: Final[Mapping[Kind, Callable[[OwnLibrary, Wanted], AddedModel]]] = MappingProxyType(
    {"file": _add_file, "address": _add_address, "hub": _add_repository}
)
