"""Hold a verified file against writers for as long as it is used (I-01, I-04).

On Linux the kernel refuses a read lease (fcntl(2), F_SETLEASE) while any process has the file open
for writing, and makes a later writer wait: it sends us a signal, and lets the writer in when we
give the lease up, or after /proc/sys/fs/lease-break-time (45 s).

The signal is SIGIO where we may handle it. An unhandled one ends the process, so no lease is taken
before its handler is in place. Only the main thread's loop hears signals, and a host that handles
SIGIO itself keeps its handler: there the signal is SIGURG, which does nothing unless somebody
handles it, and the leases are looked at several times a second.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["FileLeases", "is_held", "release"]

# A child between fork and exec shares our own writer's descriptor for a moment.
ATTEMPTS: Final = 40
PAUSE_SECONDS: Final = 0.025
# A writer waits for many seconds; it is let in at once where nothing uses the file.
LOOK_SECONDS: Final = 0.25


class FileLeases:
    """Takes leases, from any thread, once `open` has put the handler in place.

    Args:
        on_break: called in the event loop when a program wants to write to a held file.
        look_seconds: how often the leases are looked at where no signal tells.
    """

    def __init__(self, on_break: Callable[[], None], *, look_seconds: float = LOOK_SECONDS) -> None:
        self._on_break = on_break
        self._look_seconds = look_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: set[int] = set()
        self._signal = 0  # of the lease, as F_SETSIG takes it; 0 is SIGIO
        self._next_look: asyncio.TimerHandle | None = None

    def open(self) -> bool:
        """Get ready to hear of writers; False where there are no leases."""
        if sys.platform != "linux":
            return False
        import asyncio  # noqa: PLC0415 - loaded on first use

        self._loop = asyncio.get_running_loop()
        if _may_handle_sigio(self._loop):
            self._signal = 0
            _OPEN.add(self)
        else:
            self._signal = signal.SIGURG
            self._look_again()
        _ALL.add(self)
        return True

    def close(self) -> None:
        """Give up every lease, then the handler."""
        for descriptor in tuple(self._held):
            release(descriptor)
        _ALL.discard(self)
        _OPEN.discard(self)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        elif self._loop is not None and not _OPEN and sys.platform == "linux":
            self._loop.remove_signal_handler(signal.SIGIO)
        self._loop = None

    def _look_again(self) -> None:
        self.check_leases()
        if self._loop is not None:
            self._next_look = self._loop.call_later(self._look_seconds, self._look_again)

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
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, self._signal)
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
_ALL: Final[set[FileLeases]] = set()  # these, and those that look by themselves


def _may_handle_sigio(loop: asyncio.AbstractEventLoop) -> bool:
    """Handle SIGIO in this loop, if it hears signals and nobody else handles that one."""
    if sys.platform == "win32":
        return False
    if not _OPEN and signal.getsignal(signal.SIGIO) is not signal.SIG_DFL:
        return False
    try:
        loop.add_signal_handler(signal.SIGIO, _check_all)
    except (RuntimeError, ValueError):  # only the main thread's loop hears signals
        return False
    return True


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
    for leases in tuple(_ALL):
        leases.forget(descriptor)
    if sys.platform == "linux":
        fcntl = _fcntl()
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _fcntl() -> ModuleType:
    return importlib.import_module("fcntl")  # not on every system
