"""The shared libraries that a stand-alone program loads from its own installation (I-05).

No digest of them is configured. The first start takes them as they are, once no other user can
change them; each later one requires the same files. Those of the system are not looked at: they
belong to root, as the program loader does.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from companion_core.errors import Reason, Refused
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.system.known_file import KnownFile
from companion_core.system.os_compat import user_id
from companion_core.system.state_files import open_to_others

__all__ = ["ProgramLibraries"]

_LIBRARY: Final = re.compile(r".*\.(so(\.[0-9]+)*|dylib|dll)", re.IGNORECASE)


class ProgramLibraries:
    """What one program's libraries were at its first start in this process."""

    def __init__(self) -> None:
        self._known: dict[str, KnownFile] | None = None

    def prove(self, binary: ProvedBinary, read_paths: Iterable[str]) -> None:
        """Require the libraries of the first start, or take them at the first. Blocking.

        Args:
            binary: the proved program; what an embedded one imports is its plugin's
                (`plugin_host.RuntimeCode`).
            read_paths: of the plan; those within the program's own installation count.

        Raises:
            Refused: `runtime_unsafe`, `runtime_changed`; the detail names the file.
        """
        if binary.embedded:
            return
        found = {path for path in _libraries_of(binary.path, read_paths) if _is_own(path)}
        if self._known is None:
            self._known = {path: _as_it_is(path) for path in found}
            return
        changed = [path for path, file in self._known.items() if not file.is_unchanged]
        for path in sorted({*changed, *(found ^ self._known.keys())}):
            raise Refused(Reason.RUNTIME_CHANGED, path)


def _libraries_of(program: str, read_paths: Iterable[str]) -> Iterator[str]:
    """Yield the libraries beside the program, and below what its plan reads of its installation."""
    for path in dict.fromkeys((program, os.path.realpath(program))):
        folder = Path(path).parent
        yield from _libraries_in(folder, deep=False)
        for named in read_paths:
            if folder.parent in Path(named).parents:
                yield from _libraries_in(Path(named), deep=True)


def _libraries_in(folder: Path, *, deep: bool) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        yield from (f"{root}/{name}" for name in names if _LIBRARY.fullmatch(name))
        if not deep:
            folders.clear()


def _as_it_is(path: str) -> KnownFile:
    try:
        return KnownFile.as_it_is(path, None)
    except OSError as error:
        raise Refused(Reason.RUNTIME_UNSAFE, path) from error


def _is_own(path: str) -> bool:
    """Require a file of the person or root that nobody else can write to; False if none is there.

    Raises:
        Refused: `runtime_unsafe`.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - fewer objects, of what may be hundreds of files
    except FileNotFoundError:  # a link that leads nowhere
        return False
    except OSError as error:
        raise Refused(Reason.RUNTIME_UNSAFE, path) from error
    foreign = os.name == "posix" and (
        status.st_uid not in {0, user_id()} or open_to_others(status, Path(path))
    )
    if foreign or not stat.S_ISREG(status.st_mode):
        raise Refused(Reason.RUNTIME_UNSAFE, path)
    return True
