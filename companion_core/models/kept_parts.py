"""What downloads that were cut off have left in the store: what it is, and how long it stays."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.decisions.extents import Extents, parse_extents
from companion_core.decisions.strict_json import parse_json
from companion_core.errors import CompanionError
from companion_core.system.state_files import read_private

__all__ = [
    "KEPT_NAMES",
    "PartRecord",
    "bytes_of",
    "is_resumable",
    "make_room",
    "read_record",
    "received",
    "record_of",
    "split_kept",
]

# Longer than a holiday, and no longer than a person remembers what they began.
KEPT_SECONDS: Final = 14 * 24 * 3600.0
# The two files, one that is being replaced, and how earlier versions named the first.
KEPT_NAMES: Final = r"\.{1,2}([0-9a-f]{64})\.(?:resume(?:\.[0-9a-f]{16})?|(?:[0-9a-f]{16}\.)?part)"
_KEPT = re.compile(KEPT_NAMES)
_MAX_RECORD_BYTES: Final = 128 * 1024
_MAX_VALIDATOR: Final = 1024


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What the bytes beside it are.

    Attributes:
        size: of the whole file, in bytes.
        source: the SHA-256 of the address that they came from; empty if there were several.
        validator: what the server called them.
        have: which there are, once there are gaps; None for all that the file holds.
        by_pieces: each piece can be proved by itself.
    """

    size: int
    source: str
    validator: str | None
    have: Extents | None = None
    by_pieces: bool = False

    def encode(self) -> bytes:
        """Return it as `read_record` reads it."""
        content = {"size": self.size, "source": self.source, "validator": self.validator}
        have = None if self.have is None else self.have.ranges
        return json.dumps({**content, "have": have, "by_pieces": self.by_pieces}).encode()

    def there(self, file_size: int) -> Extents:
        """Return which bytes are there in a file of this size."""
        if self.have is None:
            return Extents.prefix(file_size)
        return self.have.remove(file_size, max(file_size, self.size))


def read_record(path: Path) -> PartRecord | None:
    """Learn what the bytes beside it are; None when it does not say."""
    try:
        raw = read_private(path, _MAX_RECORD_BYTES)
    except CompanionError:
        return None
    match parse_json(raw, limit=_MAX_RECORD_BYTES):
        case {
            "size": int(size),
            "source": str(source),
            "validator": str() | None as validator,
            **more,
        } if size > 0:
            have = more.get("have")
            extents = None if have is None else parse_extents(have, total=size)
            # It goes into a request: a line break would begin another header.
            plain = validator is None or (
                validator.isascii() and validator.isprintable() and len(validator) <= _MAX_VALIDATOR
            )
            if plain and (have is None or extents is not None):
                by_pieces = more.get("by_pieces") is True
                return PartRecord(size, source, validator, extents, by_pieces)
    return None


def is_resumable(count: int, size: int, validator: str | None, *, by_pieces: bool) -> bool:
    """Tell whether so many bytes of a file can be gone on with."""
    return count == size or (0 < count < size and (validator is not None or by_pieces))


def split_kept(
    folder: Path, *, now: float | None, wanted: Collection[str] = ()
) -> tuple[list[Path], list[Path]]:
    """Return what a later run could go on with, and what nobody will; folders are neither.

    Bytes whose record does not say how to go on are of no use, nor is what nobody added to for
    fourteen days.

    Args:
        folder: the store.
        now: seconds since the epoch; None to leave out of account how old they are.
        wanted: the digests that are wanted now, however old their bytes are.

    Raises:
        OSError: the disk.
    """
    found = {
        path: match[1]
        for path in folder.iterdir()
        if (match := _KEPT.fullmatch(path.name)) and not stat.S_ISDIR(path.lstat().st_mode)
    }
    useful: list[Path] = []
    kept: set[Path] = set()
    for digest in sorted(set(found.values())):
        part = bytes_of(folder, digest)
        if received(folder, digest) and (
            now is None or digest in wanted or abs(now - part.lstat().st_mtime) < KEPT_SECONDS
        ):
            useful.append(part)
            kept.update((part, record_of(folder, digest)))
    return useful, sorted(found.keys() - kept)


def received(folder: Path, sha256: str) -> int:
    """Return how many bytes of a file are there that a run can go on with, proved or not."""
    record = read_record(record_of(folder, sha256))
    with contextlib.suppress(OSError):
        status = bytes_of(folder, sha256).lstat()
        if record is not None and stat.S_ISREG(status.st_mode):
            count = record.there(status.st_size).count
            by_pieces = record.by_pieces
            useful = is_resumable(count, record.size, record.validator, by_pieces=by_pieces)
            return count if useful else 0
    return 0


def make_room(folder: Path, missing: int, *, wanted: Collection[str]) -> bool:
    """Tell whether so many bytes fit; what was received of other models goes where that helps.

    The longest untouched goes first, and no more than has to.

    Args:
        folder: the store.
        missing: bytes.
        wanted: the digests whose bytes are spared.

    Raises:
        OSError: the disk.
    """
    spared = {bytes_of(folder, digest) for digest in wanted}
    others = {path: path.lstat() for path in split_kept(folder, now=None)[0] if path not in spared}
    free = shutil.disk_usage(folder).free
    if free + sum(status.st_size for status in others.values()) < missing:
        return False
    for path in sorted(others, key=lambda path: others[path].st_mtime):
        if free >= missing:
            break
        path.unlink(missing_ok=True)
        path.with_suffix(".resume").unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    return free >= missing


def bytes_of(folder: Path, sha256: str) -> Path:
    """Return where the received bytes of a file are."""
    return folder / f".{sha256}.part"


def record_of(folder: Path, sha256: str) -> Path:
    """Return where it is written down what they are."""
    return folder / f".{sha256}.resume"
