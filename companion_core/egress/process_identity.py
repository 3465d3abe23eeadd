"""The proof that a pid still names the same process."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from companion_core.errors import EnvironmentUnavailable, Reason

__all__ = ["ProcessIdentity", "ProcessUnreadable", "identify"]


class ProcessUnreadable(EnvironmentUnavailable):
    """The system does not say what became of a process: no descriptor left, no right to read.

    Only "no such process" is an end; a caller that takes this error for one leaves it running.
    """

    def __init__(self) -> None:
        super().__init__(Reason.PROCESS_UNREADABLE)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The proof that a pid still names the same process.

    Attributes:
        start_time: when the process started, in the system's own unit; compared, not interpreted.
        executable: the absolute path of its program, "" if the system does not tell.
    """

    pid: int
    start_time: float
    executable: str


def identify(pid: int) -> ProcessIdentity | None:
    """Return what proves the process, or None when there is no such process.

    Raises:
        ProcessUnreadable: the system does not say whether there is one.
    """
    if sys.platform == "linux":
        return _identify_linux(pid)
    return _identify_elsewhere(pid)


def _identify_linux(pid: int) -> ProcessIdentity | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError) as error:
        if isinstance(error, PermissionError) and not _is_ours(pid):
            return None  # where others' processes are hidden (proc(5), hidepid), it counts as ended
        raise ProcessUnreadable from error
    state, threads, start_ticks = fields[0], int(fields[17]), int(fields[19])
    # A first thread that has ended looks like a zombie while other threads still run.
    if state in {b"Z", b"X"} and threads <= 1:
        return None
    try:
        executable = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        executable = ""
    return ProcessIdentity(pid, start_ticks, executable)


def _is_ours(pid: int) -> bool:
    """Return whether there is a process that this one may signal."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _identify_elsewhere(pid: int) -> ProcessIdentity | None:
    import psutil  # noqa: PLC0415 - needed only where /proc is not

    executable = ""
    try:
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            executable = process.exe()
        return ProcessIdentity(pid, process.create_time(), executable)
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError) as error:
        raise ProcessUnreadable from error
