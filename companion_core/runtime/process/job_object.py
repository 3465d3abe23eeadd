"""The job object of Windows: written from its documentation, not run on that system yet.

A process in the job, with all that it starts, ends when the last handle to the job is closed,
however the companion ends. The handle is never inherited, so no child keeps its own job open, and
no limit allows a child to break away from it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from ctypes import wintypes
from typing import Any, Final

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import ResourceLimits

__all__ = ["JobObject", "job_objects_work", "load_libraries"]

# Values of JOBOBJECTINFOCLASS (winnt.h).
_PROCESS_LIST, _EXTENDED_LIMITS, _CPU_RATE = 3, 9, 15
_KILL_ON_CLOSE, _DIE_ON_EXCEPTION, _JOB_MEMORY = 0x2000, 0x400, 0x200
_RATE_ENABLED, _RATE_HARD_CAP = 0x1, 0x4
_RATE_OF_ONE_PER_CENT: Final = 100  # of 10,000 cycles of all processors
_WHOLE_MACHINE: Final = 100.0
# PROCESS_TERMINATE, PROCESS_SET_QUOTA and PROCESS_SUSPEND_RESUME: the rights that `take` needs.
_ACCESS: Final = 0x0001 | 0x0100 | 0x0800
_MOST_PROCESSES: Final = 1024


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


class _CpuRate(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint32), ("rate", ctypes.c_uint32))


class _ProcessList(ctypes.Structure):
    _fields_ = (
        ("assigned", ctypes.c_uint32),
        ("listed", ctypes.c_uint32),
        ("pids", ctypes.c_size_t * _MOST_PROCESSES),
    )


_HANDLE, _POINTER = wintypes.HANDLE, ctypes.c_void_p
# By library: the result and the arguments of each call.
_SIGNATURES: Final[Mapping[str, Mapping[str, tuple[Any, tuple[Any, ...]]]]] = {
    "kernel32": {
        "CreateJobObjectW": (_HANDLE, (_POINTER, wintypes.LPCWSTR)),
        "SetInformationJobObject": (
            wintypes.BOOL,
            (_HANDLE, ctypes.c_int, _POINTER, wintypes.DWORD),
        ),
        "QueryInformationJobObject": (
            wintypes.BOOL,
            (_HANDLE, ctypes.c_int, _POINTER, wintypes.DWORD, _POINTER),
        ),
        "AssignProcessToJobObject": (wintypes.BOOL, (_HANDLE, _HANDLE)),
        "TerminateJobObject": (wintypes.BOOL, (_HANDLE, wintypes.UINT)),
        "OpenProcess": (_HANDLE, (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)),
        "CloseHandle": (wintypes.BOOL, (_HANDLE,)),
    },
    "ntdll": {"NtResumeProcess": (wintypes.LONG, (_HANDLE,))},
}


def load_libraries(load: Any = None) -> dict[str, Any]:
    """Return the system's libraries, with every call declared that is used here.

    Args:
        load: loads a library by its name; `ctypes.WinDLL` on Windows.

    Raises:
        EnvironmentUnavailable: `isolation_unavailable`; this system has none.
    """
    load = getattr(ctypes, "WinDLL", None) if load is None else load
    if load is None:
        raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
    libraries = {}
    for name, signatures in _SIGNATURES.items():
        libraries[name] = load(name)
        for call, (result, arguments) in signatures.items():
            function = getattr(libraries[name], call)
            function.restype, function.argtypes = result, arguments
    return libraries


def job_objects_work() -> bool:
    """Tell whether a job can be made and limited here; starts nothing."""
    if sys.platform != "win32":
        return False
    limits = ResourceLimits(max_ram_bytes=2**32, max_vram_bytes=None, max_cpu_percent=100)
    try:
        JobObject(load_libraries(), limits).close()
    except (EnvironmentUnavailable, OSError):
        return False
    return True


class JobObject:
    """A job whose processes end with it.

    Args:
        libraries: as `load_libraries` returns them.
        limits: memory of the whole job, beyond which the system refuses more (it counts committed
            memory, and no graphics memory), and processor time of the machine.

    Raises:
        EnvironmentUnavailable: `isolation_unavailable`; nothing is left open.
    """

    def __init__(self, libraries: dict[str, Any], limits: ResourceLimits) -> None:
        self._kernel32 = libraries["kernel32"]
        self._ntdll = libraries["ntdll"]
        self._handle: int | None = self._kernel32.CreateJobObjectW(None, None)  # not inherited
        if not self._handle:
            raise _unavailable()
        extended = _ExtendedLimits()
        extended.basic.flags = _KILL_ON_CLOSE | _DIE_ON_EXCEPTION | _JOB_MEMORY
        extended.job_memory = limits.max_ram_bytes
        settings: list[tuple[int, ctypes.Structure]] = [(_EXTENDED_LIMITS, extended)]
        if limits.max_cpu_percent < _WHOLE_MACHINE:
            rate = max(1, int(limits.max_cpu_percent * _RATE_OF_ONE_PER_CENT))
            settings.append((_CPU_RATE, _CpuRate(_RATE_ENABLED | _RATE_HARD_CAP, rate)))
        for kind, setting in settings:
            size = ctypes.sizeof(setting)
            if not self._kernel32.SetInformationJobObject(
                self._handle, kind, ctypes.byref(setting), size
            ):
                self.close()
                raise _unavailable()

    def take(self, pid: int) -> None:
        """Put a process into the job and let it run; it was started suspended, and has no child.

        Args:
            pid: the caller has an open handle to the process, so the number is still its own.

        Raises:
            EnvironmentUnavailable: `isolation_unavailable`; the caller ends the process.
        """
        process = self._kernel32.OpenProcess(_ACCESS, False, pid)  # noqa: FBT003 - False: the handle is not inherited
        if not process:
            raise _unavailable()
        try:
            taken = self._kernel32.AssignProcessToJobObject(self._handle, process)
            if not taken or self._ntdll.NtResumeProcess(process) != 0:
                raise _unavailable()
        finally:
            self._kernel32.CloseHandle(process)

    def processes(self) -> tuple[int, ...]:
        """Return the ids of all processes in the job; none once it is closed."""
        found = _ProcessList()
        size = ctypes.sizeof(found)
        if not self._handle or not self._kernel32.QueryInformationJobObject(
            self._handle, _PROCESS_LIST, ctypes.byref(found), size, None
        ):
            return ()
        return tuple(found.pids[: min(found.listed, _MOST_PROCESSES)])

    def terminate(self) -> None:
        """End every process of the job now."""
        if self._handle:
            self._kernel32.TerminateJobObject(self._handle, 1)

    def close(self) -> None:
        """End every process of the job; a second call does nothing."""
        if self._handle:
            self._kernel32.CloseHandle(self._handle)
            self._handle = None


def _unavailable() -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE, "a job object")
