"""The job object of Windows: written from its documentation, not run on that system yet.

A process in the job, and all that it starts, ends when the last handle to the job is closed,
however the companion ends. The handle is never inherited, so no child keeps its own job open.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from companion_core.errors import EnvironmentUnavailable, Reason

__all__ = ["JobObject"]

_EXTENDED_LIMITS: Final = 9  # JobObjectExtendedLimitInformation
_KILL_ON_CLOSE, _DIE_ON_EXCEPTION, _JOB_MEMORY = 0x2000, 0x400, 0x200


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("per_process_time", ctypes.c_int64),
        ("per_job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("least_working_set", ctypes.c_size_t),
        ("most_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("basic", _BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


class JobObject:
    """A job whose processes end with it.

    Args:
        kernel32: the system's library, as `ctypes.WinDLL` loads it.
        memory_bytes: of the whole job; the system refuses what goes beyond. It counts what is
            committed, no video memory.

    Raises:
        EnvironmentUnavailable: `isolation_unavailable`; nothing is left open.
    """

    def __init__(self, kernel32: Any, *, memory_bytes: int) -> None:
        self._kernel32 = kernel32
        kernel32.CreateJobObjectW.restype = ctypes.c_void_p
        self._handle = kernel32.CreateJobObjectW(None, None)  # no attributes: not inherited
        if not self._handle:
            raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
        limits = _ExtendedLimits()
        limits.basic.flags = _KILL_ON_CLOSE | _DIE_ON_EXCEPTION | _JOB_MEMORY
        limits.job_memory = memory_bytes
        size = ctypes.sizeof(limits)
        handle = ctypes.c_void_p(self._handle)
        if not kernel32.SetInformationJobObject(
            handle, _EXTENDED_LIMITS, ctypes.byref(limits), size
        ):
            self.close()
            raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)

    def take(self, process: int) -> None:
        """Put a process into the job; it must be suspended, so that it has no child yet.

        Args:
            process: its handle.

        Raises:
            EnvironmentUnavailable: `isolation_unavailable`; the caller ends the process.
        """
        job, taken = ctypes.c_void_p(self._handle), ctypes.c_void_p(process)
        if not self._kernel32.AssignProcessToJobObject(job, taken):
            raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)

    def close(self) -> None:
        """End every process of the job; a second call does nothing."""
        if self._handle:
            self._kernel32.CloseHandle(ctypes.c_void_p(self._handle))
            self._handle = None
