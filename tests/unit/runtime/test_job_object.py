"""The job object, against a double of the system's library."""

from __future__ import annotations

import ctypes

import pytest

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.isolation import job_object
from companion_core.runtime.isolation.job_object import JobObject

pytestmark = pytest.mark.unit


class Call:
    """A function of a library: has a result type, remembers its arguments."""

    def __init__(self, result: int) -> None:
        self.result, self.calls, self.restype = result, [], None

    def __call__(self, *arguments):
        self.calls.append([getattr(argument, "value", argument) for argument in arguments])
        return self.result


class Kernel32:
    def __init__(self, *, create: int = 7, configure: int = 1, assign: int = 1) -> None:
        self.CreateJobObjectW = Call(create)
        self.AssignProcessToJobObject = Call(assign)
        self.CloseHandle = Call(1)
        self.limits = None
        self._configure = configure

    def SetInformationJobObject(self, job, kind, limits, size) -> int:  # noqa: N802 - its name
        assert (job.value, kind, size) == (7, 9, ctypes.sizeof(job_object._ExtendedLimits))
        self.limits = ctypes.cast(limits, ctypes.POINTER(job_object._ExtendedLimits)).contents
        self.seen = (self.limits.basic.flags, self.limits.job_memory)
        return self._configure


def test_what_is_in_the_job_ends_with_it_and_has_a_ceiling() -> None:
    kernel32 = Kernel32()
    job = JobObject(kernel32, memory_bytes=1234)
    assert kernel32.seen == (0x2000 | 0x400 | 0x200, 1234)
    assert kernel32.CreateJobObjectW.calls == [[None, None]]
    job.take(99)
    assert kernel32.AssignProcessToJobObject.calls == [[7, 99]]
    job.close()
    job.close()
    assert kernel32.CloseHandle.calls == [[7]]


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit systems")
def test_the_structures_are_as_large_as_the_system_has_them() -> None:
    assert ctypes.sizeof(job_object._BasicLimits) == 64
    assert ctypes.sizeof(job_object._ExtendedLimits) == 144


@pytest.mark.parametrize(("fault", "closed"), [({"create": 0}, 0), ({"configure": 0}, 1)])
def test_a_job_that_cannot_be_made_is_said_and_left_nowhere(fault, closed) -> None:
    kernel32 = Kernel32(**fault)
    with pytest.raises(EnvironmentUnavailable) as caught:
        JobObject(kernel32, memory_bytes=1)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
    assert len(kernel32.CloseHandle.calls) == closed


def test_a_process_that_cannot_be_taken_is_said() -> None:
    job = JobObject(Kernel32(assign=0), memory_bytes=1)
    with pytest.raises(EnvironmentUnavailable):
        job.take(99)
    job.close()
