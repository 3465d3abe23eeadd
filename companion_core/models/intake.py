"""Take a person's file into the store: hashed while it is copied, and the original left alone.

Nothing in the store is ever named before its bytes were hashed. A copy that shares its blocks with
the original is made where the file system can; else a second name, where the file is the person's
alone; else a copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.decisions.gguf import HEAD_BYTES, GgufHead, parse_gguf
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.models.kept_parts import make_room
from companion_core.system.folder_lock import lock_folder
from companion_core.system.os_compat import (
    BINARY,
    CLOSE_ON_EXEC,
    NO_FOLLOW,
    NON_BLOCKING,
    read_at,
    user_id,
)
from companion_core.system.piecewise import PiecewiseHash
from companion_core.system.state_files import fsync_folder, open_to_others, private_folder

__all__ = ["TAKING_NAMES", "Taken", "hash_file", "read_head", "require_whole", "take_file"]

Progress = Callable[[int, int], object]

# Copies that were not finished; the next intake removes them.
TAKING_NAMES: Final = ".*.taking"
_BLOCK_BYTES: Final = 1 << 20
_FICLONE: Final = 0x40049409  # linux/fs.h
_READ: Final = os.O_RDONLY | NON_BLOCKING | CLOSE_ON_EXEC | BINARY
_MAKE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | CLOSE_ON_EXEC | BINARY


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A file that is in the store now, under its SHA-256.

    Attributes:
        size: in bytes.
        sha256: in lower-case hex.
        pieces: the SHA-256 of each `PIECE_BYTES`, one after the other.
    """

    size: int
    sha256: str
    pieces: bytes


def read_head(path: Path) -> tuple[GgufHead, int]:
    """Return what a GGUF file says of itself, and its size in bytes.

    Raises:
        EnvironmentUnavailable: `disk_unavailable`: it cannot be read.
        Refused: `model_format_unsupported`: it is something else, or not all of it is there.
    """
    try:
        with _opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            head = parse_gguf(read_at(descriptor, min(size, HEAD_BYTES), 0))
    except OSError as error:
        raise EnvironmentUnavailable(
            Reason.DISK_UNAVAILABLE, f"{path}: {error.strerror}"
        ) from error
    if head is None:
        raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, f"{path} is no GGUF file")
    require_whole(head, size, str(path))
    return head, size


def require_whole(head: GgufHead, size: int, what: str) -> None:
    """Refuse a GGUF file that ends before its head says so, or within its head.

    Args:
        head: of the file's first `HEAD_BYTES`, or of all of it.
        size: of the file, in bytes.
        what: it is, for a person.

    Raises:
        Refused: `model_format_unsupported`.
    """
    missing = (head.data_ends or 0) - size
    if missing > 0:
        lacks = f"at least {missing:,} bytes lack"
    elif not head.complete and size <= HEAD_BYTES:
        lacks = "it ends within its head"
    else:
        return
    raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, f"{what} is cut off: {lacks}")


def take_file(
    source: Path,
    folder: Path,
    *,
    progress: Progress = lambda _done, _total: None,
    cancelled: threading.Event | None = None,
) -> Taken:
    """Take a file into the store. Blocking.

    Args:
        source: the person's file; it is only read.
        folder: the store; made, owner-only.
        progress: called with bytes done and bytes in all.
        cancelled: ends the work at the next block, and nothing is left.

    Raises:
        EnvironmentUnavailable: `disk_unavailable`: it cannot be read, or there is no room.
        CompanionError: `interrupted`; `model_in_use` if it was written to meanwhile.
    """
    ended = threading.Event() if cancelled is None else cancelled
    private_folder(folder)
    try:
        with _opened(source) as original, lock_folder(folder, ended):
            for left in folder.glob(TAKING_NAMES):
                left.unlink(missing_ok=True)
            taken = _Intake(source, original, folder, progress, ended).take()
            fsync_folder(folder)
            return taken
    except OSError as error:
        detail = f"{source}: {error.strerror}"
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, detail) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _READ)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file")
        yield descriptor
    finally:
        os.close(descriptor)


class _Intake:
    """One file on its way into the store."""

    def __init__(
        self,
        source: Path,
        original: int,
        folder: Path,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        self._source = source
        self._original = original
        self._folder = folder
        self._progress = progress
        self._cancelled = cancelled
        self._status = os.fstat(original)

    def take(self) -> Taken:
        if self._may_share_name():
            taken = self._hash(self._original)
            if self._link(taken):
                return taken
        return self._copy()

    def _may_share_name(self) -> bool:
        """Tell whether a second name of the file would be as good as a copy of it.

        Only where nobody else can write to it, and where no copy that shares its blocks is
        cheaper still: in place of a copy the person's own programs could change it, which the
        proof before each start would notice.
        """
        status, store = self._status, self._folder.stat()
        return (
            sys.platform != "win32"
            and status.st_dev == store.st_dev
            and status.st_uid == user_id()
            and not open_to_others(status, self._original)
            and not self._clones()
        )

    def _clones(self) -> bool:
        """Tell whether this file system makes copies that share their blocks."""
        if sys.platform != "linux":
            return False
        with self._temporary() as (_, descriptor):
            return self._clone(descriptor)

    def _clone(self, descriptor: int) -> bool:
        if sys.platform != "linux":
            return False
        import fcntl  # noqa: PLC0415 - does not exist on Windows

        try:
            fcntl.ioctl(descriptor, _FICLONE, self._original)
        except OSError:
            return False
        return True

    def _link(self, taken: Taken) -> bool:
        path = self._folder / taken.sha256
        try:
            os.link(self._source, path)
        except FileExistsError:
            return True  # it is there; a start proves it
        except OSError:
            return False  # no second names here, or none for this file
        if not os.path.samestat(path.lstat(), self._status):
            path.unlink()  # the name leads elsewhere now
            return False
        return True

    def _copy(self) -> Taken:
        with self._temporary() as (path, descriptor):
            if self._clone(descriptor):
                taken = self._hash(descriptor)
            else:
                if not make_room(self._folder, self._status.st_size, wanted=()):
                    raise OSError(errno.ENOSPC, "there is not enough room for a copy")
                taken = self._hash(self._original, into=descriptor)
            if sys.platform != "win32":
                os.fchmod(descriptor, 0o400)
            os.fsync(descriptor)
            path.replace(self._folder / taken.sha256)
            return taken

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        path = self._folder / f".{os.urandom(8).hex()}.taking"
        descriptor = os.open(path, _MAKE, 0o600)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _hash(self, descriptor: int, *, into: int | None = None) -> Taken:
        """Hash the file whole and piece by piece, and copy what was hashed."""

        def tell(size: int) -> None:
            self._progress(size, self._status.st_size)

        taken = hash_file(descriptor, cancelled=self._cancelled, progress=tell, into=into)
        now = os.fstat(self._original)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise CompanionError(Reason.MODEL_IN_USE)
        return taken


def hash_file(
    descriptor: int,
    *,
    cancelled: threading.Event,
    progress: Callable[[int], object] = lambda _done: None,
    into: int | None = None,
) -> Taken:
    """Hash a file whole and piece by piece, and copy what was hashed.

    The pieces are hashed in a second thread: `hashlib` lets both run at once.

    Args:
        descriptor: of the file, open for reading.
        cancelled: ends the work at the next block.
        progress: called with bytes done.
        into: a descriptor that gets a copy.

    Raises:
        CompanionError: `interrupted`.
        OSError: the disk.
    """
    size = 0
    with PiecewiseHash(PIECE_BYTES) as digest:
        while block := read_at(descriptor, _BLOCK_BYTES, size):
            if cancelled.is_set():
                raise CompanionError(Reason.INTERRUPTED)
            digest.update(block)
            if into is not None:
                _write_all(into, block)
            size += len(block)
            progress(size)
    return Taken(size=size, sha256=digest.sha256, pieces=digest.pieces)


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]
