"""What lies where a backend looks for the model: a link to it, or an empty file to mount it over.

Neither is a name of the model's file, except on Windows: see `backend_store.py`.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from companion_core.models.store import ProvedFile
from companion_core.system.os_compat import NO_FOLLOW

__all__ = [
    "beside",
    "files_below",
    "is_empty_file",
    "is_same_inode",
    "leads_to",
    "make_link",
    "put_empty_file",
]


# More than any backend makes; a start would take seconds to look at each of them.
_MOST_ENTRIES: Final = 100_000


def is_same_inode(file: ProvedFile, path: Path) -> bool:
    """Tell whether the path, which is not followed, is a name of the hashed file."""
    try:
        there, hashed = path.lstat(), os.fstat(file.descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (hashed.st_dev, hashed.st_ino)


def leads_to(file: ProvedFile, link: Path) -> bool:
    """Tell whether `link` is what `make_link` makes of it, and leads to the hashed file."""
    if sys.platform == "win32":
        return is_same_inode(file, link)
    try:
        there = os.readlink(link)  # noqa: PTH115 - a Path would change the text of the link
        return there == file.path and os.path.samestat(link.stat(), os.fstat(file.descriptor))
    except OSError:
        return False


def make_link(file: ProvedFile, link: Path) -> bool:
    """Replace `link` by a symbolic link to the hashed file, on Windows by a hard one.

    Return False where none can be made.
    """
    temporary = beside(link)
    try:
        if sys.platform == "win32":
            os.link(file.path, temporary)
        else:
            temporary.symlink_to(file.path)
        if leads_to(file, temporary):
            temporary.replace(link)
    except (OSError, NotImplementedError):
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return leads_to(file, link)


def is_empty_file(path: Path) -> bool:
    """Tell whether an ordinary file without content is there."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def put_empty_file(path: Path) -> None:
    """Replace what is there, which is no folder, by an empty file."""
    temporary = beside(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o400))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that is no folder; a folder that a runtime closed to us is opened again.

    Raises:
        OSError: a folder cannot be read, or there is more than a store has (ENAMETOOLONG, E2BIG).
    """
    waiting, seen = [str(folder)], 0
    while waiting:
        with os.scandir(waiting.pop()) as listed:
            entries = list(itertools.islice(listed, _MOST_ENTRIES + 1 - seen))
        seen += len(entries)
        if seen > _MOST_ENTRIES:
            raise OSError(errno.E2BIG, "too many entries")
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)  # noqa: PTH101 - an entry has its path as text
                waiting.append(entry.path)
            else:
                yield entry


def beside(link: Path) -> Path:
    """Return a name in the same folder that nobody can foresee."""
    return link.with_name(f".{link.name}.{secrets.token_hex(4)}")
