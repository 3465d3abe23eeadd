"""Files that were looked at once and must stay what they were; hashed again only if they changed.

What identifies a file (its device, inode, size, time of modification and time of change) changes
when it is replaced or written to, and no program but root's can set the time of change back. It
also changes for a link, a new name or another mode: then the bytes decide, if they are known.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Final

from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NON_BLOCKING

__all__ = ["Identity", "KnownFile", "identify"]

# Device, inode, size, time of modification and time of change.
Identity = tuple[int, int, int, int, int]

# The coarsest file systems round times to two seconds: a younger file may change within its time.
_SETTLED_NANOSECONDS: Final = 2_000_000_000


def identify(status: os.stat_result) -> Identity:
    """Return what changes when a file is replaced or written to.

    A link, a new name or another mode changes it too: then only the bytes can tell.
    """
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


@dataclass(slots=True)
class KnownFile:
    """One file, and what is known of it.

    Attributes:
        path: absolute; a link is followed.
        sha256: in lower-case hex; None for a file of which only the identity is known.
        identity: with which the bytes were right; None while no identity says so.
    """

    path: str
    sha256: str | None
    identity: Identity | None = field(default=None, repr=False)

    @classmethod
    def as_it_is(cls, path: str, sha256: str | None) -> KnownFile:
        """Take the file as it is now, with the digest that its installer wrote down.

        A file that changed a moment ago is hashed, since its identity says nothing yet.

        Raises:
            OSError: it cannot be read.
        """
        status = _require_file(os.stat(path))  # noqa: PTH116 - a runtime may have thousands
        if _is_settled(status):
            return cls(path, sha256, identify(status))
        digest, _ = _hash(path)
        return cls(path, digest)

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is what it was; reads it only where its identity does not say so."""
        try:
            if self.identity is not None and identify(os.stat(self.path)) == self.identity:  # noqa: PTH116 - as above
                return True
            if self.sha256 is None:
                return False
            digest, self.identity = _hash(self.path)
        except OSError:
            return False
        if digest == self.sha256:
            return True
        self.identity = None
        return False


def _hash(path: str) -> tuple[str, Identity | None]:
    """Return the digest, and the identity if from now on that proves the same bytes."""
    descriptor = os.open(path, os.O_RDONLY | NON_BLOCKING | CLOSE_ON_EXEC | BINARY)
    with os.fdopen(descriptor, "rb") as file:
        before = _require_file(os.fstat(descriptor))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(descriptor)
    sound = identify(before) == identify(after) and _is_settled(after)
    return digest, identify(after) if sound else None


def _require_file(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not an ordinary file")
    return status


def _is_settled(status: os.stat_result) -> bool:
    """Tell whether a change from now on gives the file another time."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NANOSECONDS
