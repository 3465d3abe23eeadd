"""Lock a folder for one writer; the lock ends with the process that has it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from companion_core.errors import CompanionError, Reason
from companion_core.system.state_files import try_lock

__all__ = ["lock_folder"]

_POLL_SECONDS: Final = 0.1


@contextlib.contextmanager
def lock_folder(folder: Path, cancelled: threading.Event) -> Iterator[None]:
    """Wait until `folder` is free, and keep it locked inside the context.

    Raises:
        CompanionError: `interrupted` if `cancelled` is set while waiting.
        OSError: the folder cannot be opened.
    """
    if sys.platform == "win32":
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    else:
        # The folder itself is locked, so no lock file can be left over or raced for.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while not try_lock(descriptor):
            if cancelled.wait(_POLL_SECONDS):
                raise CompanionError(Reason.INTERRUPTED)
        yield
    finally:
        os.close(descriptor)
