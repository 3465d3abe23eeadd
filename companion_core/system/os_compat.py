"""Flags of open(2) and calls that not every system's `os` has; a missing flag is 0."""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = [
    "BINARY",
    "CLOSE_ON_EXEC",
    "FOLDER",
    "NON_BLOCKING",
    "NO_FOLLOW",
    "group_id",
    "read_at",
    "user_id",
]

BINARY: Final[int] = getattr(os, "O_BINARY", 0)
CLOSE_ON_EXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)  # Windows: `os.open` inherits nothing
FOLDER: Final[int] = getattr(os, "O_DIRECTORY", 0)
NON_BLOCKING: Final[int] = getattr(os, "O_NONBLOCK", 0)
NO_FOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)


def user_id() -> int:
    """Return the user this process acts as; 0 on Windows, whose files have no owner's number."""
    if sys.platform == "win32":
        return 0
    return os.geteuid()


def group_id() -> int:
    """Return the group this process acts as; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    return os.getegid()


def read_at(descriptor: int, count: int, at: int) -> bytes:
    """Read at most `count` bytes at offset `at`; b"" at the end.

    On Windows this moves the descriptor's own offset, so only one reader at a time may use it.
    """
    if sys.platform == "win32":
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, count)
    return os.pread(descriptor, count, at)
