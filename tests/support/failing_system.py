"""A system that fails at one call: a life's calls are recorded, then each is failed in turn."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from companion_core.egress.live import LiveEgress
from companion_core.egress.process_identity import ProcessUnreadable

PACKAGE = str(Path(sys.modules["companion_core"].__file__ or "").parent)
# Between the package and the system, and none of ours: whose call is it?
BETWEEN = ("pathlib.py", "os.py", "shutil.py", "contextlib.py", "posixpath.py")
CALLS = (
    *("open", "read", "write", "pread", "fsync", "fstat", "stat", "lstat", "access"),
    *("mkdir", "rmdir", "unlink", "rename", "replace", "chmod", "fchmod", "symlink", "readlink"),
    *("listdir", "scandir", "pipe", "dup", "dup2", "statvfs", "memfd_create", "pidfd_open"),
)
OF_THE_DOORWAY = ("start_process", "identify", "send_signal", "connect_control")
# A call that only names what may be a link, or looks where a lack is an answer, has its own errors.
ERRORS = (errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS)


class System:
    """Counts the package's own calls, and fails the one with the given number."""

    def __init__(self, fail_at: int | None, number: int) -> None:
        self.calls: list[str] = []
        self.on = True
        self._fail_at = fail_at
        self._number = number

    def called(self, name: str, depth: int = 2) -> None:
        place = _called_from(depth + 1) if self.on else None
        if place is None:
            return
        self.calls.append(f"{name} in {place}")
        if len(self.calls) - 1 == self._fail_at:
            if name in {"identify", "send_signal"}:
                raise ProcessUnreadable
            raise OSError(self._number, os.strerror(self._number))


def _called_from(depth: int) -> str | None:
    """Return the package's function that calls; None for a call of somebody else."""
    frame: Any = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename.endswith(BETWEEN):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(PACKAGE):
        return None
    file = frame.f_code.co_filename[len(PACKAGE) + 1 :]
    return None if file.startswith("testing") else f"{file}:{frame.f_lineno}"


class FailingEgress(LiveEgress):
    """The live doorway, whose calls are counted and failed with the others."""

    def __init__(self, system: System) -> None:
        for name in OF_THE_DOORWAY:
            setattr(self, name, self._counted(system, name))

    def _counted(self, system: System, name: str) -> Callable[..., Any]:
        call = getattr(LiveEgress, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            system.called(name)
            return call(self, *arguments, **options)

        return counted


@contextmanager
def failing_system(fail_at: int | None = None, number: int = errno.EIO) -> Iterator[System]:
    """Put a system in the place of `os`; without a number, it records and fails nothing."""
    system = System(fail_at, number)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            if hasattr(os, name):
                patch.setattr(os, name, _counting(system, name))
        yield system
        system.on = False


def _counting(system: System, name: str) -> Callable[..., Any]:
    call = getattr(os, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        system.called(name)
        return call(*arguments, **options)

    for kind in (os.supports_dir_fd, os.supports_follow_symlinks, os.supports_fd):
        if call in kind:
            kind.add(counted)
    return counted
