"""The lines of a log and of the full one before it, and what is added while somebody reads."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from companion_core.system.bounded_log import earlier_log
from companion_core.system.state_files import open_ordinary

__all__ = ["read_log"]

_LOOK_SECONDS: Final = 0.2
_READ_BYTES: Final = 64 * 1024


class _Log:
    """A log that is read while others add to it, and that another may follow at its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self._rest = b""

    def lines(self) -> Iterator[str]:
        """Yield each line up to the end of what is there; the last one only once it is whole."""
        while self._file is not None and (added := self._file.read(_READ_BYTES)):
            *lines, self._rest = (self._rest + added).split(b"\n")
            yield from map(_text, lines)
            if len(self._rest) >= _READ_BYTES:
                yield from self._remainder()

    def _remainder(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        if rest:
            yield _text(rest)

    def began_anew(self) -> bool:
        """Tell whether another log is at the path, or this one was emptied."""
        if self._file is None:
            return self._path.exists()
        try:
            status = self._path.stat()
        except OSError:
            return False  # it was removed, and none has come yet
        same = os.path.samestat(status, os.fstat(self._file.fileno()))
        return not same or status.st_size < self._file.tell()

    def begin_anew(self) -> Iterator[str]:
        """Yield what is left of this one, and read the one at the path from now on."""
        yield from self.lines()
        yield from self._remainder()
        self.close()
        self._file = _open(self._path)
        yield from self.lines()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_log(
    path: Path,
    count: int,
    *,
    following: bool,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[str]:
    """Yield the newest lines of a log and the one before it, then what is added.

    Args:
        path: of the log, which need not exist yet.
        count: how many lines that are there, at most; 0 for all of them.
        following: go on for ever, also where another log begins.
        sleep: waits so many seconds.

    Raises:
        OSError: it cannot be read, or is no ordinary file.
    """
    log = _Log(path)  # first, so that nothing between the two is missed
    try:
        newest: deque[str] = deque(maxlen=count or None)
        if (earlier := _open(earlier_log(path))) is not None:
            with earlier:
                newest.extend(_text(line) for line in earlier)
        newest.extend(log.lines())
        yield from newest
        while following:
            sleep(_LOOK_SECONDS)
            yield from log.begin_anew() if log.began_anew() else log.lines()
    finally:
        log.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return open_ordinary(path)
    except FileNotFoundError:
        return None


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")
