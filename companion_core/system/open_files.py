"""How many files this process may have open: raised for the program, not for what it starts.

A runtime is planned, and confined, as a program with the person's usual limit, and some programs
still use select(2), which a descriptor above 1,023 breaks. So each child gets the limit that the
person's shell gave the companion.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Final

__all__ = ["open_file_limit", "raise_open_file_limit", "restore_open_file_limit"]

# More is never needed, and some systems allow a billion.
ENOUGH: Final = 65_536
WINDOWS_LIMIT: Final = 8192  # sockets and files are handles there, of which there are more

_before: int | None = None


def open_file_limit() -> int:
    """Return how many files this process may have open now."""
    if sys.platform == "win32":
        return WINDOWS_LIMIT
    import resource  # noqa: PLC0415 - does not exist on Windows

    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else min(soft, ENOUGH)


def raise_open_file_limit() -> None:
    """Raise the soft limit to the hard one, as far as that is of use and allowed."""
    global _before  # noqa: PLW0603 - the limit belongs to the process, as this does
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS allows less than it names
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        _before = soft if _before is None else _before


def restore_open_file_limit(pid: int) -> None:
    """Give a child the limit from before; only Linux can change that of another process."""
    if sys.platform != "linux" or _before is None:
        return
    import resource  # noqa: PLC0415 - does not exist on Windows

    with contextlib.suppress(OSError):  # it has ended, or has become another user
        _soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_before, hard))
