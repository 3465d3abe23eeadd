"""A file of another program's settings: read as a stranger's text, and replaced whole.

A link to it stays, and so does its mode. Each folder on the way, and each link, belongs to the
person or to root and can be changed by nobody else; the file is the person's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.connect.changes import Unclear
from companion_core.errors import Reason, Refused
from companion_core.system.lacks import lack_of
from companion_core.system.os_compat import user_id
from companion_core.system.state_files import (
    OWNER_ONLY,
    check_owned,
    open_ordinary,
    write_private,
)

__all__ = ["PersonFile", "read_file", "remove_file", "write_file"]

_MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonFile:
    """What a file holds at one moment.

    Attributes:
        path: as the program knows it.
        data: None if there is no file.
        mode: its permission bits; None if there is no file.
    """

    path: Path
    data: bytes | None
    mode: int | None

    @property
    def text(self) -> str:
        """Its text; "" without a file.

        Raises:
            Unclear: it is no text.
        """
        try:
            return (self.data or b"").decode()
        except UnicodeDecodeError:
            raise Unclear("it is no text in UTF-8") from None


def read_file(path: Path) -> PersonFile:
    """Read a file, through links.

    Raises:
        Refused: `client_file_foreign`: it is not the person's, or no ordinary file;
            `state_path_unsafe`: another user could replace it.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    check_owned(path)
    try:
        with open_ordinary(path) as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise _foreign(path, "is a link to nothing") from None
        return PersonFile(path=path, data=None, mode=None)
    except OSError as error:
        if path.exists() and not path.is_file():
            raise _foreign(path, "is no ordinary file") from None
        raise lack_of(error, path=path) from error
    if len(data) > _MAX_BYTES:
        raise _foreign(path, "is far too long")
    if os.name == "posix" and status.st_uid != user_id():
        raise _foreign(path, "belongs to someone else")
    return PersonFile(path=path, data=data, mode=stat.S_IMODE(status.st_mode))


def missing_folders(path: Path) -> list[Path]:
    """Return the folders that a file's path lacks, the outermost last."""
    return [folder for folder in path.parents if not folder.exists()]


def write_file(before: PersonFile, data: bytes, *, mode: int) -> None:
    """Replace a file that is still as it was read.

    Raises:
        Refused: `client_file_foreign`: it was changed in the meantime; else as `read_file`.
        EnvironmentUnavailable: `disk_unavailable`; the old content is still there.
    """
    if read_file(before.path) != before:
        raise _foreign(before.path, "was changed at this moment; nothing was changed")
    try:
        for folder in reversed(missing_folders(before.path)):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise lack_of(error, path=before.path) from error
    write_private(Path(os.path.realpath(before.path)), data, mode=mode)


def remove_file(path: Path, folders: list[Path]) -> None:
    """Remove a file, and then the folders that were made for it, as far as they are empty."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise lack_of(error, path=path) from error
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def owner_only(mode: int | None) -> int:
    """Return the mode of a file that holds a key."""
    return OWNER_ONLY if mode is None else mode & OWNER_ONLY


def _foreign(path: Path, why: str) -> Refused:
    return Refused(Reason.CLIENT_FILE_FOREIGN, f"{path} {why}")
