"""Find the installed distributions that declare a plugin, cheaply.

A folder of packages is read again only after it changed, and then only the file of entry
points of each distribution. `importlib.metadata`, which reads distributions in full, is loaded
only if one declares a plugin, so a machine without plugins never pays for it.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["GROUPS", "declaring_distributions", "forget"]

GROUPS: Final = (AUTHORITY_GROUP, RUNTIME_GROUP)

_NEEDLES: Final = tuple(group.encode() for group in GROUPS)
_SUFFIXES: Final = (".dist-info", ".egg-info")
# The coarsest file systems round a folder's time to two seconds, so a folder that is younger
# than that may change again without a new time.
_SETTLED_NANOSECONDS: Final = 2_000_000_000

# Folder to its time of change and to the names of its distributions that declare a plugin.
_CACHE: Final[dict[str, tuple[int, tuple[str, ...]]]] = {}


def declaring_distributions(search: Sequence[str]) -> Iterator[Distribution]:
    """Yield each distribution in the folders of `search` that mentions one of `GROUPS`.

    The entry points are not parsed here. A folder that cannot be read yields nothing.
    """
    for entry in search:
        folder = entry or os.curdir
        if os.path.isfile(folder) and zipfile.is_zipfile(folder):  # noqa: PTH113 - cheap
            from importlib import metadata  # noqa: PLC0415 - slow; only an archive needs it

            yield from metadata.distributions(path=[folder])
            continue
        names = _declaring(folder)
        if names:
            from importlib import metadata  # noqa: PLC0415 - slow; only a plugin needs it

            yield from (metadata.Distribution.at(Path(folder) / name) for name in names)


def forget() -> None:
    """Forget what is cached: the next scan reads every folder again."""
    _CACHE.clear()


def _declaring(folder: str) -> tuple[str, ...]:
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116 - faster than Path
    except OSError:
        return ()
    known = _CACHE.get(folder)
    if known is not None and known[0] == changed:
        return known[1]
    names = tuple(sorted(_read_folder(folder)))
    if time.time_ns() - changed > _SETTLED_NANOSECONDS:
        _CACHE[folder] = (changed, names)
    return names


def _read_folder(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(_SUFFIXES)]
    except OSError:
        return
    for name in names:
        try:
            with open(f"{folder}/{name}/entry_points.txt", "rb", buffering=0) as file:  # noqa: PTH123 - faster
                text = file.read()
        except OSError:
            continue
        if any(needle in text for needle in _NEEDLES):
            yield name
