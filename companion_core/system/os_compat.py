"""What not every system's `os` has: flags of open(2), which are 0 there, and a few calls."""

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
    """Return whom this process acts as; 0 on Windows, where files tell no owner by number."""
    if sys.platform == "win32":
        return 0
    return os.geteuid()


def group_id() -> int:
    """Return the group this process acts as; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    return os.getegid()


def read_at(descriptor: int, count: int, at: int) -> bytes:
    """Read at most `count` bytes from the place `at`; b"" at the end.

    Where the system has no such call the descriptor's own place moves: one reader at a time.
    """
    if sys.platform == "win32":
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, count)
    return os.pread(descriptor, count, at)
