"""Which threads have a table of descriptors of their own.

Threads share one table (clone(2), CLONE_FILES), unless one was started without that flag or has
left the table (unshare(2)). `/proc/PID/fd` shows the first thread's table alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["table_holders"]

_KCMP: Final = {"x86_64": 312, "aarch64": 272}
_KCMP_FILES: Final = 2


def table_holders(pid: int) -> list[int]:
    """Return the process, and each of its threads that may have a table of its own.

    The kernel is asked which tables are the same (kcmp(2)). Where it does not say, every thread is
    returned.

    Raises:
        FileNotFoundError, ProcessLookupError: the process is gone.
        OSError: it cannot be read.
    """
    compare, holders = _comparison(), [pid]
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208 - only the names are needed
        if thread == pid or compare(pid, thread):
            continue
        # Many threads may share one table that is not the process's.
        if holders[-1] == pid or not compare(holders[-1], thread):
            holders.append(thread)
    return holders


@functools.cache
def _comparison() -> Callable[[int, int], bool]:
    """Return a function that tells whether two threads certainly have the same table."""
    number = _KCMP.get(platform.machine()) if sys.maxsize > 2**32 else None
    if sys.platform != "linux" or number is None:
        return lambda _one, _other: False
    call = ctypes.CDLL(None).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 6, ctypes.c_long
    return lambda one, other: call(number, one, other, _KCMP_FILES, 0, 0) == 0
