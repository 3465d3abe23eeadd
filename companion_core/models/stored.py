"""Which files are in the store under their digest, and how they leave it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

from companion_core.system.folder_lock import lock_folder

__all__ = ["delete_files", "room_for_files", "stored_files"]

_STORED: Final = re.compile(r"[0-9a-f]{64}")
_UNFINISHED: Final = ".*.part"  # a download makes room for itself by those of others


def stored_files(folder: Path) -> set[str]:
    """Return the digests under which files are stored; none of them is proved by that."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if _STORED.fullmatch(path.name)}


def room_for_files(folder: Path) -> int:
    """Return how many bytes of files could come: what is free, and what unfinished ones hold.

    Args:
        folder: the store; it need not be there yet, but a folder above it.

    Raises:
        OSError: the disk.
    """
    there = folder
    while not there.is_dir():
        there = there.parent
    return shutil.disk_usage(there).free + sum(
        path.lstat().st_size for path in folder.glob(_UNFINISHED)
    )


def delete_files(folder: Path, digests: Collection[str], cancelled: threading.Event) -> int:
    """Delete files from the store, and return how many bytes were given back.

    Raises:
        CompanionError: `interrupted`.
        OSError: the disk.
    """
    given_back = 0
    if folder.is_dir():
        with lock_folder(folder, cancelled):
            for digest in digests:
                path = folder / digest
                if path.exists():
                    given_back += path.stat().st_size
                    path.unlink()
    return given_back
