"""Whose descriptors are not those of their process: threads with a table of their own.

Threads share one table (clone(2), CLONE_FILES), unless one was started without it or left it
(unshare(2)). `/proc/PID/fd` shows that of the first thread alone.
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
    """Return the process, and each of its threads whose table may be another one.

    The kernel is asked which are the same (kcmp(2)). Where it does not say, that is every thread.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process any more.
        OSError: it cannot be read.
    """
    compare, holders = _comparison(), [pid]
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208 - names are all it takes
        if thread == pid or compare(pid, thread):
            continue
        # Many may share the table that is not the process's.
        if holders[-1] == pid or not compare(holders[-1], thread):
            holders.append(thread)
    return holders


@functools.cache
def _comparison() -> Callable[[int, int], bool]:
    """Return what tells that two threads certainly have the same table."""
    number = _KCMP.get(platform.machine()) if sys.maxsize > 2**32 else None
    if sys.platform != "linux" or number is None:
        return lambda _one, _other: False
    call = ctypes.CDLL(None).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 6, ctypes.c_long
    return lambda one, other: call(number, one, other, _KCMP_FILES, 0, 0) == 0
