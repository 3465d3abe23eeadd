"""The job object, against a double of the system's libraries."""

from __future__ import annotations

import ctypes

import pytest

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import ResourceLimits
from companion_core.runtime.process import job_object
from companion_core.runtime.process.job_object import JobObject, job_objects_work, load_libraries

pytestmark = pytest.mark.unit

LIMITS = ResourceLimits(max_ram_bytes=1234, max_vram_bytes=None, max_cpu_percent=50)
BREAKAWAY = 0x800 | 0x1000  # JOB_OBJECT_LIMIT_BREAKAWAY_OK, …_SILENT_BREAKAWAY_OK


class Call:
    """A function of a library: takes a signature, remembers its arguments."""

    def __init__(self, result: object) -> None:
        self.result, self.calls = result, []
        self.restype = self.argtypes = None

    def __call__(self, *arguments):
        assert self.argtypes is not None, "called without a signature"
        assert len(arguments) == len(self.argtypes)
        self.calls.append(arguments)
        return self.result(*arguments) if callable(self.result) else self.result


class Kernel32:
    def __init__(self, *, create=7, configure=1, opened=9, assign=1, pids=()) -> None:
        self.seen: dict[int, object] = {}
        self.configure, self.pids = configure, pids
        self.CreateJobObjectW = Call(create)
        self.SetInformationJobObject = Call(self._set)
        self.QueryInformationJobObject = Call(self._query)
        self.OpenProcess = Call(opened)
        self.AssignProcessToJobObject = Call(assign)
        self.TerminateJobObject = Call(1)
        self.CloseHandle = Call(1)

    def _set(self, _job, kind, setting, size) -> int:
        structure = {9: job_object._ExtendedLimits, 15: job_object._CpuRate}[kind]
        assert size == ctypes.sizeof(structure)
        self.seen[kind] = structure.from_buffer_copy(
            ctypes.cast(setting, ctypes.POINTER(structure)).contents
        )
        return self.configure if kind == 9 or self.configure < 2 else 0

    def _query(self, _job, kind, found, size, _returned) -> int:
        structure = job_object._ProcessList
        assert (kind, size) == (3, ctypes.sizeof(structure))
        listed = ctypes.cast(found, ctypes.POINTER(structure)).contents
        if self.pids is None:
            return 0
        listed.assigned = listed.listed = len(self.pids)
        for at, pid in enumerate(self.pids):
            listed.pids[at] = pid
        return 1


class Ntdll:
    def __init__(self, resumed: int = 0) -> None:
        self.NtResumeProcess = Call(resumed)


def libraries(*, resumed: int = 0, **faults):
    made = {"kernel32": Kernel32(**faults), "ntdll": Ntdll(resumed)}
    return load_libraries(made.__getitem__)


def test_what_is_in_the_job_ends_with_it_and_has_ceilings() -> None:
    loaded = libraries()
    kernel32 = loaded["kernel32"]
    job = JobObject(loaded, LIMITS)
    assert kernel32.CreateJobObjectW.calls == [(None, None)]  # no attributes: not inherited
    limits = kernel32.seen[9]
    assert limits.basic.flags == 0x2000 | 0x400 | 0x200
    assert not limits.basic.flags & BREAKAWAY
    assert limits.job_memory == 1234
    rate = kernel32.seen[15]
    assert (rate.flags, rate.rate) == (0x1 | 0x4, 5000)
    job.close()
    job.close()
    assert kernel32.CloseHandle.calls == [(7,)]
    assert job.processes() == ()
    job.terminate()
    assert kernel32.TerminateJobObject.calls == []


@pytest.mark.parametrize(("percent", "rate"), [(100, None), (0.001, 1), (12.5, 1250)])
def test_processor_time_is_of_the_whole_machine(percent, rate) -> None:
    loaded = libraries()
    limits = ResourceLimits(max_ram_bytes=1, max_vram_bytes=None, max_cpu_percent=percent)
    JobObject(loaded, limits)
    seen = loaded["kernel32"].seen.get(15)
    assert (None if seen is None else seen.rate) == rate


def test_a_suspended_process_runs_once_it_is_in_the_job() -> None:
    loaded = libraries()
    order = []
    kernel32, ntdll = loaded["kernel32"], loaded["ntdll"]
    kernel32.AssignProcessToJobObject.result = lambda *_: order.append("taken") or 1
    ntdll.NtResumeProcess.result = lambda *_: order.append("resumed") or 0
    JobObject(loaded, LIMITS).take(4711)
    assert kernel32.OpenProcess.calls == [(0x0001 | 0x0100 | 0x0800, False, 4711)]
    assert kernel32.AssignProcessToJobObject.calls == [(7, 9)]
    assert ntdll.NtResumeProcess.calls == [(9,)]
    assert order == ["taken", "resumed"]
    assert kernel32.CloseHandle.calls == [(9,)]


def test_the_job_knows_its_processes_and_ends_them() -> None:
    loaded = libraries(pids=(5, 70000))
    job = JobObject(loaded, LIMITS)
    assert job.processes() == (5, 70000)
    loaded["kernel32"].pids = None
    assert job.processes() == ()
    job.terminate()
    assert loaded["kernel32"].TerminateJobObject.calls == [(7, 1)]


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit systems")
def test_the_structures_are_as_large_as_the_system_has_them() -> None:
    assert ctypes.sizeof(job_object._BasicLimits) == 64
    assert ctypes.sizeof(job_object._ExtendedLimits) == 144
    assert ctypes.sizeof(job_object._CpuRate) == 8
    assert job_object._ProcessList.pids.offset == 8


@pytest.mark.parametrize(
    ("fault", "closed"), [({"create": 0}, 0), ({"configure": 0}, 1), ({"configure": 2}, 1)]
)
def test_a_job_that_cannot_be_made_is_said_and_left_nowhere(fault, closed) -> None:
    loaded = libraries(**fault)
    with pytest.raises(EnvironmentUnavailable) as caught:
        JobObject(loaded, LIMITS)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
    assert len(loaded["kernel32"].CloseHandle.calls) == closed


@pytest.mark.parametrize(
    ("fault", "closed"), [({"opened": None}, 0), ({"assign": 0}, 1), ({"resumed": -1}, 1)]
)
def test_a_process_that_cannot_be_taken_is_said(fault, closed) -> None:
    loaded = libraries(**fault)
    job = JobObject(loaded, LIMITS)
    with pytest.raises(EnvironmentUnavailable):
        job.take(99)
    assert len(loaded["kernel32"].CloseHandle.calls) == closed
    if "assign" in fault:
        assert loaded["ntdll"].NtResumeProcess.calls == []


@pytest.mark.skipif(hasattr(ctypes, "WinDLL"), reason="systems without jobs")
def test_elsewhere_there_are_none() -> None:
    assert not job_objects_work()
    with pytest.raises(EnvironmentUnavailable):
        load_libraries()
