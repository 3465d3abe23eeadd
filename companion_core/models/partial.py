"""What a download has received, kept so that the next start goes on from there (I-04).

Two owner-only files in the store, neither named like a model: `.SHA256.part` holds the bytes,
`.SHA256.resume` says of which size and source they are, what the server called them and, where
there are gaps, which of them are there. The record is written before the first byte, so that no
byte lies under a record that is not its own. Whether the bytes are right is decided over the
whole file (`store.py`). Whoever uses them holds the store's lock, which ends with its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from companion_core.decisions.extents import Extents
from companion_core.decisions.integrity import ModelSpec
from companion_core.decisions.pieces import Pieces
from companion_core.errors import CompanionError
from companion_core.models.kept_parts import (
    PartRecord,
    bytes_of,
    is_resumable,
    read_record,
    record_of,
)
from companion_core.providers import ResumeRefused
from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NO_FOLLOW, NON_BLOCKING, user_id
from companion_core.system.state_files import write_private

__all__ = ["Partial"]

_MODE: Final = 0o600
_WRITE = os.O_WRONLY | NO_FOLLOW | NON_BLOCKING | CLOSE_ON_EXEC | BINARY
# Where a file has gaps, what came since the record was written is lost when the process is killed.
_NOTED_BYTES: Final = 32 << 20


class Partial:
    """One file that is being received, open for writing.

    Attributes:
        spec: what it has to be in the end.
        path: where the bytes are.
        pieces: of the file, where the manifest lists them: then bytes of any address, and of one
            without a validator, can be gone on with, since each piece is proved by itself.
        have: which bytes there are.
        resumed: bytes of an earlier run are among them.
        doubtful: they may be wrong: all are there and not proved, or an answer was being taken
            that was not merely cut off.
    """

    def __init__(self, folder: Path, spec: ModelSpec, pieces: Pieces | None = None) -> None:
        """Go on with what an earlier run received, if it can be; else begin with nothing.

        Args:
            folder: the store.
            spec: what the bytes have to be.
            pieces: of the file, if they are known.

        Raises:
            OSError: the disk.
        """
        self.spec = spec
        self.pieces = pieces
        self.path = bytes_of(folder, spec.sha256)
        self._record = record_of(folder, spec.sha256)
        self._descriptor = -1
        self._source: str | None = None
        self._validator: str | None = None
        self._position = -1
        self._forget()
        record = read_record(self._record)
        if record is not None and record.size == spec.size:
            self._source, self._validator = record.source, record.validator
            self._descriptor, self._end = _open_own(self.path, spec.size)
            self._listed = record.have is not None
            self.have = record.there(self._end)
        self.resumed = self.received > 0
        self.doubtful = self.complete
        if not self.worth_keeping:
            self.close()
            self.remove()
            self._descriptor = os.open(self.path, _WRITE | os.O_CREAT | os.O_EXCL, _MODE)
            self._forget()

    @classmethod
    def adopt(cls, folder: Path, spec: ModelSpec, pieces: Pieces, broken: Collection[int]) -> bool:
        """Make a stored file one that is being received, and that lacks its broken pieces.

        False if it has a second name, which may be the person's own file: nothing is changed.

        Args:
            folder: the store.
            spec: of the file; its digest is its name.
            pieces: of the file.
            broken: the numbers of those that are wrong.

        Raises:
            OSError: the disk.
        """
        stored = folder / spec.sha256
        status = stored.lstat()
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1):
            return False
        have = Extents.prefix(min(status.st_size, spec.size))
        for index in broken:
            start, count = pieces.extent(index)
            have = have.remove(start, start + count)
        # First what says which bytes are right, so that none lies under a record that is not its.
        for left in (record_of(folder, spec.sha256), bytes_of(folder, spec.sha256)):
            left.unlink(missing_ok=True)
        record = PartRecord(spec.size, "", None, have, by_pieces=True)
        write_private(record_of(folder, spec.sha256), record.encode())
        stored.chmod(_MODE)
        stored.replace(bytes_of(folder, spec.sha256))
        return True

    @property
    def received(self) -> int:
        """How many bytes are there."""
        return self.have.count

    @property
    def complete(self) -> bool:
        """As many bytes are there as were signed for."""
        return self.received == self.spec.size

    @property
    def worth_keeping(self) -> bool:
        """A later run could go on with it."""
        by_pieces = self.pieces is not None
        return is_resumable(self.received, self.spec.size, self._validator, by_pieces=by_pieces)

    def came_from(self, url: str) -> bool:
        """Tell whether the bytes are of this address."""
        return self._source == _digest(url)

    def resume_point(self, url: str) -> tuple[bool, str | None]:
        """Tell whether `url` may be asked for what is missing alone, and with which validator."""
        validator = self._validator if self.came_from(url) else None
        return bool(self.received) and (validator is not None or self.pieces is not None), validator

    def begin(self, url: str, validator: str | None) -> None:
        """Take the bytes from `url`, from the first one on; what was there is dropped."""
        self._reset()
        self._take_from(url, validator)

    def go_on(self, url: str, validator: str | None) -> None:
        """Take from `url` what is missing.

        Raises:
            ResumeRefused: it is the rest of something else (RFC 9110 section 15.3.7.3).
        """
        if self.came_from(url) and validator in {None, self._validator}:
            self.doubtful = True
        elif self.pieces is None:
            raise ResumeRefused
        else:
            self._take_from(url, validator)

    def _take_from(self, url: str, validator: str | None) -> None:
        self.doubtful = True
        self._source, self._validator = _digest(url), validator
        self._note(durable=True)

    def write(self, at: int, block: memoryview) -> None:
        """Write a block of which no byte is beyond the end; one thread at a time."""
        if at != self._end and not self._listed:
            self._listed = True  # from now on the size of the file says nothing
            self._note()
        if at != self._position:
            os.lseek(self._descriptor, at, os.SEEK_SET)
        while block:
            written = os.write(self._descriptor, block)
            self.have = self.have.add(at, at + written)
            at += written
            self._position = at
            self._end = max(self._end, at)
            self._unnoted += written
            block = block[written:]
        if self._listed and self._unnoted >= _NOTED_BYTES:
            self._note()

    def drop(self, broken: Collection[int]) -> None:
        """Count these pieces as missing, also in what is written down.

        Raises:
            OSError: the disk.
        """
        if self.pieces is None or not broken:
            return
        for index in broken:
            start, count = self.pieces.extent(index)
            self.have = self.have.remove(start, start + count)
        self._listed = True
        self.doubtful = False
        self._note()

    def whole_pieces(self) -> list[int]:
        """Return the pieces of which every byte is there."""
        if self.pieces is None:
            return []
        extents = [self.pieces.extent(index) for index in range(len(self.pieces))]
        return [
            index
            for index, (start, count) in enumerate(extents)
            if self.have.covers(start, start + count)
        ]

    def _note(self, *, durable: bool = False) -> None:
        """Write down what the bytes are, and which there are where the size does not say it."""
        self._unnoted = 0
        have = self.have if self._listed else None
        by_pieces = self.pieces is not None
        record = PartRecord(self.spec.size, self._source or "", self._validator, have, by_pieces)
        write_private(self._record, record.encode(), durable=durable)

    def _reset(self) -> None:
        """Drop every byte, and what was known of them."""
        self._record.unlink(missing_ok=True)
        # ext4 writes a file out when it is closed if it was ever cut, also from nothing to nothing.
        if os.fstat(self._descriptor).st_size:
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
            if self._listed and self._unnoted:
                with contextlib.suppress(CompanionError):  # then less is known to be there
                    self._note()

    def remove(self) -> None:
        """Remove both files; a link is removed and not followed."""
        for path in (self._record, self.path):
            path.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._source = self._validator = None
        self.have = Extents()
        self.resumed = False
        self._listed = False  # the record lists what is there
        self._unnoted = 0  # bytes since it was written
        self._end = 0  # of the file
        self._position = -1  # where the next byte would be written; unknown at first


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
