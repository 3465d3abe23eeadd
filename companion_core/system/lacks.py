"""What the environment lacks, by the error that the system gave: never a fault of the program.

The detail names the path or the limit, for the person's terminal alone (I-15).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from companion_core.errors import EnvironmentUnavailable, Reason

__all__ = ["is_lack", "is_limit", "lack_of", "lacks_told", "limit_told_in"]

_LIMITS: Final = {
    errno.EMFILE: "open files of this process (ulimit -n)",
    errno.ENFILE: "open files of this machine (fs.file-max)",
    errno.EAGAIN: "processes and threads (ulimit -u)",
    errno.ENOMEM: "memory",
}
_NO_THREAD: Final = "can't start new thread"  # the RuntimeError of CPython's `_thread`
# What programs of any language print where they get no more, in the C locale (strerror(3)).
_TOLD: Final = {
    "Resource temporarily unavailable": errno.EAGAIN,
    _NO_THREAD: errno.EAGAIN,
    "Too many open files in system": errno.ENFILE,
    "Too many open files": errno.EMFILE,
}


def lack_of(
    error: BaseException, otherwise: Reason = Reason.DISK_UNAVAILABLE, *, path: Path | None = None
) -> EnvironmentUnavailable:
    """Return the refusal that says what the environment lacks.

    Args:
        error: what the system gave.
        otherwise: the reason where the system reached none of its limits.
        path: what it was about, where the error does not name a path.
    """
    if isinstance(error, RecursionError):
        return EnvironmentUnavailable(Reason.LIMIT_REACHED, "something is nested too deep")
    if isinstance(error, MemoryError):
        return EnvironmentUnavailable(Reason.LIMIT_REACHED, _LIMITS[errno.ENOMEM])
    if not isinstance(error, OSError):
        return EnvironmentUnavailable(Reason.LIMIT_REACHED, _LIMITS[errno.EAGAIN])
    if error.errno in _LIMITS:
        return EnvironmentUnavailable(Reason.LIMIT_REACHED, _LIMITS[error.errno])
    named = error.filename if isinstance(error.filename, str | bytes) else path
    # A name may be no text, and a terminal takes text alone.
    shown = "" if named is None else os.fsencode(named).decode(errors="backslashreplace")
    parts = (shown, error.strerror or "")
    return EnvironmentUnavailable(otherwise, ": ".join(filter(None, parts)))


def is_lack(error: BaseException) -> bool:
    """Tell whether the system, and not the program, is the cause of an error."""
    lacks = isinstance(error, OSError | RecursionError | MemoryError)
    return lacks or (isinstance(error, RuntimeError) and str(error) == _NO_THREAD)


def is_limit(error: BaseException) -> bool:
    """Tell whether the system has no descriptor, thread, process or memory left.

    Foreign code is not blamed for it. A recursion without end is a fault of whoever wrote it.
    """
    if isinstance(error, OSError):
        return error.errno in _LIMITS
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and str(error) == _NO_THREAD
    )


def limit_told_in(lines: Iterable[str]) -> str:
    """Return the limit that a program says in its output that it reached; "" if it says none."""
    said = "\n".join(lines)
    return next((_LIMITS[number] for text, number in _TOLD.items() if text in said), "")


@contextlib.contextmanager
def lacks_told(otherwise: Reason = Reason.DISK_UNAVAILABLE) -> Iterator[None]:
    """Raise what the system refuses inside the context as `EnvironmentUnavailable`."""
    try:
        yield
    except Exception as error:
        if is_lack(error):
            raise lack_of(error, otherwise) from error
        raise
