"""Hold a verified file against writers for as long as it is used (I-01, I-04).

On Linux the kernel refuses a read lease (fcntl(2), F_SETLEASE) while any process has the file open
for writing, and makes a later writer wait: it sends us SIGIO, and lets the writer in when we give
the lease up, or after /proc/sys/fs/lease-break-time (45 s). An unhandled SIGIO ends the process,
so no lease is taken before its handler is in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Final

__all__ = ["FileLeases", "is_held", "release"]

# A child between fork and exec shares our own writer's descriptor for a moment.
ATTEMPTS: Final = 40
PAUSE_SECONDS: Final = 0.025


class FileLeases:
    """Takes leases, from any thread, once `open` has put the handler in place.

    Args:
        on_break: called in the event loop when a program wants to write to a held file.
    """

    def __init__(self, on_break: Callable[[], None]) -> None:
        self._on_break = on_break
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: set[int] = set()

    def open(self) -> bool:
        """Install the handler of SIGIO; False where there are no leases or no main thread."""
        if sys.platform != "linux":
            return False
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGIO, _check_all)
        except (RuntimeError, ValueError):  # only the main thread's loop hears signals
            return False
        self._loop = loop
        _OPEN.add(self)
        return True

    def close(self) -> None:
        """Give up every lease, then the handler."""
        for descriptor in tuple(self._held):
            release(descriptor)
        _OPEN.discard(self)
        if self._loop is not None and not _OPEN and sys.platform == "linux":
            self._loop.remove_signal_handler(signal.SIGIO)
        self._loop = None

    def hold(self, descriptor: int, pause: Callable[[float], object]) -> bool:
        """Hold the open file against writers; False where the system cannot.

        Args:
            descriptor: open for reading only, of a file of our own.
            pause: waits so many seconds between attempts.

        Raises:
            BlockingIOError: somebody has it open for writing.
        """
        if self._loop is None:
            return False
        fcntl = _fcntl()
        # Before the lease: else the signal goes to the thread that asked for it.
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, 0)  # SIGIO, which we handle
        for attempt in range(ATTEMPTS):
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    return False  # a file system without leases
                if attempt == ATTEMPTS - 1:
                    raise BlockingIOError(errno.EAGAIN, "open for writing") from None
            else:
                self._held.add(descriptor)
                return True
            pause(PAUSE_SECONDS)
        return False

    def forget(self, descriptor: int) -> None:
        """Watch no longer a descriptor that is about to be closed."""
        self._held.discard(descriptor)

    def check_leases(self) -> None:
        """Tell of a held file that somebody wants to write to."""
        # A copy: another thread may hold one more meanwhile.
        lost = {descriptor for descriptor in tuple(self._held) if not is_held(descriptor)}
        self._held -= lost
        if lost:
            self._on_break()


# The handler is the process's own, and so is the number of a descriptor.
_OPEN: Final[set[FileLeases]] = set()


def _check_all() -> None:
    """SIGIO names no file."""
    for leases in tuple(_OPEN):
        leases.check_leases()


def is_held(descriptor: int) -> bool:
    """Tell whether the lease is there and nobody has asked to write."""
    fcntl = _fcntl()
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK)
    except OSError:
        return False


def release(descriptor: int) -> None:
    """Give a lease up, if there is one; a fork that shares the descriptor would keep it."""
    for leases in tuple(_OPEN):
        leases.forget(descriptor)
    if sys.platform == "linux":
        fcntl = _fcntl()
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _fcntl() -> ModuleType:
    return importlib.import_module("fcntl")  # not on every system
