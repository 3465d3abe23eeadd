"""An owner-only log that is added to by whoever knows its path, and that never grows for good.

A full log becomes `NAME.1`, in place of the one before, so there are at most two.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NO_FOLLOW

__all__ = ["MAX_LOG_BYTES", "earlier_log", "open_log"]

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | CLOSE_ON_EXEC | BINARY


def earlier_log(path: Path) -> Path:
    """Return where the full log before this one is."""
    return path.with_name(path.name + ".1")


def open_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> int:
    """Return a descriptor that adds to the log; one that is full makes room first.

    Raises:
        OSError: the disk, or a link in its place.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    if os.fstat(descriptor).st_size < max_bytes:
        return descriptor
    os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):  # another writer did it at the same time
        path.replace(earlier_log(path))
    return os.open(path, _FLAGS, 0o600)
