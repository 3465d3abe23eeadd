"""Look at a GGUF file of the person's before it is taken: what it is, and whether it will fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.config.sections import Config, is_model_id
from companion_core.decisions.fit import Fit, footprint_of, judge_fit
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.manifest_kind import Role
from companion_core.errors import Reason, Refused, UsageError
from companion_core.models.intake import read_head
from companion_core.serving.assembly import default_ram_ceiling

__all__ = [
    "NO_ID",
    "PARTS",
    "PROJECTOR",
    "FoundFile",
    "FoundModelFiles",
    "file_name",
    "fit_of",
    "id_of_name",
    "licence_of",
    "look_at",
    "told_fit",
]

PARTS: Final = re.compile(
    r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE
)
_MOSTPARTS: Final = 1000  # files of a manifest
NO_ID: Final = re.compile(r"[^A-Za-z0-9._+-]+")
PROJECTOR: Final = "clip"  # the architecture that a projector names
_LICENCE: Final = re.compile(r"[\x20-\x7e]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file, and what a runtime does with it; `size` is in bytes."""

    path: Path
    size: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModelFiles:
    """The files of one model, none of them taken yet.

    Attributes:
        id: what requests will call it.
        head: of the model, or of the first part of it.
        origin: the absolute path that was named.
    """

    id: str
    files: tuple[FoundFile, ...]
    head: GgufHead
    origin: str

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def licence(self) -> str | None:
        """As the file states it; None if it states none that can be written down."""
        return licence_of(self.head)

    @property
    def context_length(self) -> int | None:
        """The context that the model was made for, in tokens; None if it does not say so."""
        return self.head.number("context_length")


def look_at(
    source: Path, *, model_id: str | None = None, projector: Path | None = None
) -> FoundModelFiles:
    """Read the heads of a model's files. Blocking.

    Args:
        source: the file; of a split model any part, and all parts are found.
        model_id: what requests shall call it; by default the file's name.
        projector: the file through which the model sees or hears.

    Raises:
        EnvironmentUnavailable: `disk_unavailable`: a file cannot be read.
        Refused: `model_format_unsupported`: it is no whole GGUF file, or a part is missing.
        UsageError: the id cannot be one.
    """
    wanted = model_id or id_of_name(source.name)
    if not is_model_id(wanted):
        raise UsageError(Reason.USAGE, f"{wanted!r} cannot be a model's id; name one with --id")
    paths = _parts(source)
    heads = [read_head(path) for path in paths]
    if heads[0][0].architecture == PROJECTOR:
        raise Refused(
            Reason.MODEL_FORMAT_UNSUPPORTED,
            f"{source} is a projector; name the model, and this with --projector",
        )
    files = [
        FoundFile(path=path, size=size, role=Role.MODEL)
        for path, (_, size) in zip(paths, heads, strict=True)
    ]
    if projector is not None:
        head, size = read_head(projector)
        if head.architecture != PROJECTOR:
            raise Refused(
                Reason.MODEL_FORMAT_UNSUPPORTED, f"{projector} is a model, and no projector"
            )
        files.append(FoundFile(path=projector, size=size, role=Role.PROJECTOR))
    return FoundModelFiles(
        id=wanted, files=tuple(files), head=heads[0][0], origin=str(source.absolute())
    )


def licence_of(head: GgufHead) -> str | None:
    """Return the licence that a file states; None if it states none that can be written down."""
    found = head.text("general.license")
    return found if found and _LICENCE.fullmatch(found) else None


def fit_of(config: Config, head: GgufHead | None, size: int) -> Fit:
    """Say whether a model fits below the ceiling of memory, and with which context.

    Args:
        config: names the ceilings, and how many requests are worked on at once.
        head: of the model; without one only its bytes count.
        size: of all its files, in bytes.
    """
    limits = config.limits
    ceiling = limits.max_ram_bytes or default_ram_ceiling()
    return judge_fit(
        footprint_of(head, weights=size),
        available=min(ceiling, limits.max_vram_bytes or ceiling),
        places=config.gateway.max_in_flight,
        configured=config.runtime.context_length,
    )


def told_fit(fit: Fit) -> str:
    """Say for a person what a model needs, and of how much."""
    context = "" if fit.context is None else f" with {fit.context:,} tokens of context"
    shorter = ", fewer than it was made for" if fit.shortened else ""
    may = f"{fit.available / 1e9:,.1f} GB may be used"
    return f"it needs about {fit.needed / 1e9:,.1f} GB{context}{shorter}; {may}"


def file_name(path: Path) -> str:
    """Return the name of a file, of characters that a manifest may have."""
    return NO_ID.sub("-", path.name).lstrip(".-+")


def _parts(source: Path) -> Sequence[Path]:
    """Return every part of a split model, in order; of any other the file itself."""
    match = PARTS.fullmatch(source.name)
    if match is None:
        return [source]
    count = int(match["count"])
    names = [
        f"{match['prefix']}-{number:05d}-of-{match['count']}{source.name[-5:]}"
        for number in range(1, min(count, _MOSTPARTS) + 1)
    ]
    paths = [source.with_name(name) for name in names]
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004 - a line
        raise Refused(
            Reason.MODEL_FORMAT_UNSUPPORTED,
            f"{source} is one part of {count}; missing: {', '.join(missing[:3])}{more}",
        )
    return paths


def id_of_name(name: str) -> str:
    """Return what a model is called by default: its file's name, of characters an id may have."""
    match = PARTS.fullmatch(name)
    stem = match["prefix"] if match else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    return NO_ID.sub("-", stem).strip("-._+")[:128]
