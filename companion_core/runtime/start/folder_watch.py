"""Learn at once that a folder has a new entry, where the system tells it (inotify(7))."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["FolderWatch"]

_CREATED_OR_MOVED_IN: Final = 0x100 | 0x80
_EVENT_BYTES: Final = 4096


class FolderWatch:
    """Watches until `close`; on systems without inotify it never calls.

    Args:
        folder: an existing folder.
        on_entry: called in the running event loop when the folder has a new entry.
    """

    def __init__(self, folder: Path, on_entry: Callable[[], None]) -> None:
        self._on_entry = on_entry
        self._descriptor = _open_watch(folder)
        if self._descriptor is not None:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    async def close(self) -> None:
        """Stop watching; may be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            # The kernel waits for every processor before this returns: some 10 ms.
            await asyncio.to_thread(os.close, descriptor)

    def _read(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._descriptor, _EVENT_BYTES)
            self._on_entry()


def _open_watch(folder: Path) -> int | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        return None
    if library.inotify_add_watch(descriptor, os.fsencode(folder), _CREATED_OR_MOVED_IN) < 0:
        os.close(descriptor)
        return None
    return descriptor
