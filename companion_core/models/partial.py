"""What a download has received, kept so that the next start goes on from there (I-04).

Two owner-only files in the store, neither named like a model: `.SHA256.part` holds the bytes,
`.SHA256.resume` says of which size and source they are and what the server called them. The
record is written before the first byte, so that no byte lies under a record that is not its
own. Whether the bytes are right is decided over the whole file (`staging.py`). Whoever uses
them holds the store's lock, which ends with its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.decisions.integrity import ModelSpec
from companion_core.decisions.strict_json import parse_json
from companion_core.errors import CompanionError
from companion_core.providers import ResumeRefused
from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NO_FOLLOW, NON_BLOCKING, user_id
from companion_core.system.state_files import read_private, write_private

__all__ = ["KEPT_NAMES", "Partial", "make_room", "received", "split_kept"]

# Longer than a holiday, and no longer than a person remembers what they began.
KEPT_SECONDS: Final = 14 * 24 * 3600.0
# The two files, one that is being replaced, and how earlier versions named the first.
KEPT_NAMES: Final = r"\.{1,2}([0-9a-f]{64})\.(?:resume(?:\.[0-9a-f]{16})?|(?:[0-9a-f]{16}\.)?part)"
_KEPT = re.compile(KEPT_NAMES)
_MODE: Final = 0o600
_MAX_RECORD_BYTES: Final = 4096
_WRITE = os.O_WRONLY | NO_FOLLOW | NON_BLOCKING | CLOSE_ON_EXEC | BINARY


class Partial:
    """One file that is being received, open for writing.

    Attributes:
        spec: what it has to be in the end.
        path: where the bytes are.
        received: how many there are.
        resumed: bytes of an earlier run are among them.
        doubtful: they may be wrong: all are there and not proved, or an answer was being taken
            that was not merely cut off.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Go on with what an earlier run received, if it can be; else begin with nothing.

        Args:
            folder: the store.
            spec: what the bytes have to be.

        Raises:
            OSError: the disk.
        """
        self.spec = spec
        self.path = _bytes_of(folder, spec.sha256)
        self._record = _record_of(folder, spec.sha256)
        self._source: str | None = None
        self._validator: str | None = None
        self._descriptor = -1
        self.received = 0
        record = _read_record(self._record)
        if record is not None and record.size == spec.size:
            self._source, self._validator = record.source, record.validator
            self._descriptor, self.received = _open_own(self.path, spec.size)
        self.resumed = self.received > 0
        self.doubtful = self.complete
        if not self.worth_keeping:
            self.close()
            self.remove()
            self._descriptor = os.open(self.path, _WRITE | os.O_CREAT | os.O_EXCL, _MODE)
            self._forget()

    @property
    def complete(self) -> bool:
        """As many bytes are there as were signed for."""
        return self.received == self.spec.size

    @property
    def worth_keeping(self) -> bool:
        """A later run could go on with it."""
        return _resumable(self.received, self.spec.size, self._validator)

    def came_from(self, url: str) -> bool:
        """Tell whether the bytes are of this address."""
        return self._source == _digest(url)

    def resume_point(self, url: str) -> tuple[int, str | None]:
        """Return the offset to ask `url` for, and the validator to ask with."""
        if self.came_from(url) and self._validator is not None and self.received:
            return self.received, self._validator
        return 0, None

    def begin(self, url: str, validator: str | None) -> None:
        """Take the bytes from `url`, from the first one on; what was there is dropped."""
        self._reset()
        self.doubtful = True
        self._source, self._validator = _digest(url), validator
        content = {"size": self.spec.size, "source": self._source, "validator": validator}
        write_private(self._record, json.dumps(content).encode())

    def go_on(self, validator: str | None) -> None:
        """Take the rest of what is there.

        Raises:
            ResumeRefused: it is the rest of something else (RFC 9110 section 15.3.7.3).
        """
        if validator is not None and validator != self._validator:
            raise ResumeRefused
        self.doubtful = True

    def append(self, block: memoryview) -> None:
        """Write the block; the caller has seen that it is not too long."""
        while block:
            written = os.write(self._descriptor, block)
            self.received += written
            block = block[written:]

    def _reset(self) -> None:
        """Drop every byte, and what was known of them."""
        self._record.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._forget()

    def sync(self) -> None:
        """Have the disk take the bytes, where only a writer can ask for that."""
        if os.name != "posix":
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Stop writing; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Remove both files; a link is removed and not followed."""
        for path in (self._record, self.path):
            path.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._source = self._validator = None
        self.received, self.resumed = 0, False


@dataclass(frozen=True, slots=True)
class _Record:
    size: int
    source: str
    validator: str | None


def _read_record(path: Path) -> _Record | None:
    """Learn what the bytes beside it are; None when it does not say."""
    try:
        raw = read_private(path, _MAX_RECORD_BYTES)
    except CompanionError:
        return None
    match parse_json(raw, limit=_MAX_RECORD_BYTES):
        case {"size": int(size), "source": str(source), "validator": str() | None as validator}:
            # It goes into a request: a line break would begin another header.
            if validator is None or (validator.isascii() and validator.isprintable()):
                return _Record(size, source, validator)
    return None


def _resumable(count: int, size: int, validator: str | None) -> bool:
    """Tell whether so many bytes of a file can be gone on with."""
    return count == size or (0 < count < size and validator is not None)


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
        part = _bytes_of(folder, digest)
        if received(folder, digest) and (
            now is None or digest in wanted or abs(now - part.lstat().st_mtime) < KEPT_SECONDS
        ):
            useful.append(part)
            kept.update((part, _record_of(folder, digest)))
    return useful, sorted(found.keys() - kept)


def received(folder: Path, sha256: str) -> int:
    """Return how many bytes of a file are there that a run can go on with, proved or not."""
    record = _read_record(_record_of(folder, sha256))
    with contextlib.suppress(OSError):
        status = _bytes_of(folder, sha256).lstat()
        if record is not None and stat.S_ISREG(status.st_mode):
            count = status.st_size
            return count if _resumable(count, record.size, record.validator) else 0
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
    spared = {_bytes_of(folder, digest) for digest in wanted}
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


def _bytes_of(folder: Path, sha256: str) -> Path:
    return folder / f".{sha256}.part"


def _record_of(folder: Path, sha256: str) -> Path:
    return folder / f".{sha256}.resume"


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _open_own(path: Path, limit: int) -> tuple[int, int]:
    """Open a file that only we could have made, to add to it.

    Returns:
        The descriptor and the size; -1 and 0 for a link, a second name, a pipe, a file that is
        someone else's or open to others, and one of more than `limit` bytes.
    """
    try:
        descriptor = os.open(path, _WRITE)
    except OSError:
        return -1, 0
    status = os.fstat(descriptor)
    own = os.name != "posix" or (
        status.st_uid == user_id() and stat.S_IMODE(status.st_mode) == _MODE
    )
    # A link that the system has followed, where it cannot be told not to, is another file.
    ordinary = stat.S_ISREG(status.st_mode) and os.path.samestat(status, path.lstat())
    if own and ordinary and status.st_nlink == 1 and status.st_size <= limit:
        os.lseek(descriptor, 0, os.SEEK_END)
        return descriptor, status.st_size
    os.close(descriptor)
    return -1, 0
