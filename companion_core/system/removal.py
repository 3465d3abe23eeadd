"""Remove a folder whose content somebody hostile may have made: to the end, or to a bound.

Each folder below is moved up to the top before it is emptied, so depth costs neither recursion nor
descriptors nor a long path. Nothing is reached but by a name in a folder that is open: no link is
followed. A mount point cannot be moved (rename(2), EBUSY) and so is never entered.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from companion_core.system.os_compat import CLOSE_ON_EXEC, FOLDER, NO_FOLLOW

__all__ = ["Budget", "folders_set_aside", "remove_tree", "set_aside"]

_ENTRIES: Final = 1_000_000
_SECONDS: Final = 5.0
_PATH_ALONE: Final[int] = getattr(os, "O_PATH", 0)
_OPEN: Final = os.O_RDONLY | FOLDER | NO_FOLLOW | CLOSE_ON_EXEC
_OWNER: Final = 0o700
_ASIDE: Final = ".set-aside-"  # no plugin's name begins with a dot


class Budget:
    """How much one clean-up may do, over all the folders that it is given for.

    Args:
        entries: how many entries may be looked at.
        seconds: how long it may take.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        entries: int = _ENTRIES,
        seconds: float = _SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries = entries
        self._clock = clock
        self._until = clock() + seconds

    def spend(self) -> bool:
        """Take one entry; False once there is nothing left."""
        self._entries -= 1
        return self._entries >= 0 and self._clock() < self._until


def remove_tree(folder: Path, budget: Budget | None = None) -> bool:
    """Remove `folder` and all below it; return whether it is gone. Blocking.

    Never raises for what it finds: what cannot be removed (an immutable file, a mount point, what
    is beyond the budget) stays, and so do the folders that it is in, moved up below `folder`.
    """
    try:
        if sys.platform == "win32":  # no descriptors of folders, and no paths beyond a limit
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _remove(folder, Budget() if budget is None else budget)
    except (OSError, RecursionError):
        pass
    return not os.path.lexists(folder)


def set_aside(folder: Path) -> None:
    """Take a folder away from its place, and remove as much of it as `remove_tree` can.

    Raises:
        OSError: it cannot be moved.
    """
    aside = folder.with_name(f"{_ASIDE}{secrets.token_hex(8)}")
    folder.rename(aside)
    remove_tree(aside)


def folders_set_aside(above: Path) -> list[Path]:
    """Return what `set_aside` could not remove of the folders in `above`."""
    try:
        return sorted(path for path in above.iterdir() if path.name.startswith(_ASIDE))
    except OSError:
        return []


def _remove(folder: Path, budget: Budget) -> None:
    above = os.open(folder.parent, _OPEN)
    try:
        top = _open_folder(folder.name, above)
        try:
            moved = _empty(top, top, budget)
            while moved:
                name = moved.pop()
                with contextlib.suppress(OSError):
                    moved += _empty_and_remove(name, top, budget)
        finally:
            os.close(top)
        os.rmdir(folder.name, dir_fd=above)
    finally:
        os.close(above)


def _empty_and_remove(name: str, top: int, budget: Budget) -> list[str]:
    """Remove a folder right below `top`; return the new names of the folders that were in it."""
    inside = _open_folder(name, top)
    try:
        moved = _empty(inside, top, budget)
    finally:
        os.close(inside)
    with contextlib.suppress(OSError):  # something in it stays
        os.rmdir(name, dir_fd=top)
    return moved


def _empty(inside: int, top: int, budget: Budget) -> list[str]:
    """Remove what is no folder, move folders to `top`, and return the names they have there.

    It looks again until a look removes nothing: an entry may have come since, or the system may
    not have listed it while others were removed (readdir(3)).
    """
    moved: list[str] = []
    removed = 1
    while removed:
        removed = 0
        with os.scandir(inside) as entries:
            for entry in entries:
                if inside == top and entry.name in moved:
                    continue
                if not budget.spend():
                    return moved
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        moved.append(_move_up(entry.name, inside, top))
                    else:
                        os.unlink(entry.name, dir_fd=inside)
                    removed += 1
    return moved


def _move_up(name: str, inside: int, top: int) -> str:
    """Give a folder a new name in `top`; a folder that its owner may not write to is opened."""
    new = secrets.token_hex(8)
    try:
        os.rename(name, new, src_dir_fd=inside, dst_dir_fd=top)
    except PermissionError:  # another parent is a change of the folder itself
        _open_to_owner(name, inside)
        os.rename(name, new, src_dir_fd=inside, dst_dir_fd=top)
    return new


def _open_folder(name: str, above: int) -> int:
    """Open a folder, which its owner may read and change from now on; a link is refused."""
    try:
        descriptor = os.open(name, _OPEN, dir_fd=above)
    except PermissionError:
        _open_to_owner(name, above)
        descriptor = os.open(name, _OPEN, dir_fd=above)
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_mode & _OWNER != _OWNER:
                os.fchmod(descriptor, _OWNER)
    return descriptor


def _open_to_owner(name: str, above: int) -> None:
    """Let the owner into a folder that cannot be opened, without following a link.

    Raises:
        OSError: it is no folder, or not the person's.
    """
    if os.chmod in os.supports_follow_symlinks:
        if stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            os.chmod(name, _OWNER, dir_fd=above, follow_symlinks=False)
        return
    # Linux: a descriptor that gives no access names the very folder (open(2), O_PATH).
    place = os.open(name, _PATH_ALONE | FOLDER | NO_FOLLOW | CLOSE_ON_EXEC, dir_fd=above)
    try:
        Path(f"/proc/self/fd/{place}").chmod(_OWNER)
    finally:
        os.close(place)
