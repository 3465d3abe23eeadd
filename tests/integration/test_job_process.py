"""How Windows starts a runtime, run here: real processes, and doubles of the system's calls.

What stands in for the system: a start that stops before the program (for CREATE_SUSPENDED), a
session (for the job), SIGCONT and SIGKILL. So the order of the steps is seen working; the
calls themselves have not been run on Windows yet.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

import psutil
import pytest
import runtime_parts as parts

from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.providers import ModelFile
from companion_core.runtime.process import job_object
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.process.windows_job import JobProcess
from companion_core.runtime.start import sequence as starting
from companion_core.runtime.start.handed_model import HandedModel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc"),
]

STOPPED = """
import os, signal, sys
os.kill(os.getpid(), signal.SIGSTOP)
os.execv(sys.argv[1], sys.argv[1:])
"""
TCP = frozenset({"tcp"})


class SuspendingEgress(LiveEgress):
    """Starts a process suspended, as Windows does: the program has not run an instruction yet."""

    def start_process(self, argv, *, suspended=False, **options):
        if suspended:
            argv = (sys.executable, "-IS", "-c", STOPPED, *argv)
        process = super().start_process(argv, **options)
        if suspended:
            assert parts.wait_until(
                lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
            )
        return process


class Kernel:
    """Jobs as sessions: a process that was started here leads one."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.resumed: list[int] = []
        self.closed = False
        self.refuse_assign = False

    def __getitem__(self, library: str):
        return self

    def members(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in self.taken and parts.alive(process.pid):
                    found.append(process.pid)
            except (OSError, psutil.Error):
                continue
        return found

    def CreateJobObjectW(self, *_) -> int:  # noqa: N802 - the system's name
        return 1

    def SetInformationJobObject(self, *_) -> int:  # noqa: N802 - the system's name
        return 1

    def QueryInformationJobObject(self, _job, _kind, found, *_) -> int:  # noqa: N802 - the system's name
        listed = ctypes.cast(found, ctypes.POINTER(job_object._ProcessList)).contents
        members = self.members()
        listed.assigned = listed.listed = len(members)
        for at, pid in enumerate(members):
            listed.pids[at] = pid
        return 1

    def OpenProcess(self, _access, _inherit, pid) -> int:  # noqa: N802 - the system's name
        return pid

    def AssignProcessToJobObject(self, _job, process) -> int:  # noqa: N802 - the system's name
        if self.refuse_assign:
            return 0
        self.taken.append(process)
        return 1

    def NtResumeProcess(self, process) -> int:  # noqa: N802 - the system's name
        assert process in self.taken, "it ran before it was in the job"
        self.resumed.append(process)
        os.kill(process, signal.SIGCONT)
        return 0

    def TerminateJobObject(self, *_) -> int:  # noqa: N802 - the system's name
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        return 1

    def CloseHandle(self, handle) -> int:  # noqa: N802 - the system's name
        if handle == 1:
            self.closed = True
            self.TerminateJobObject()
        return 1


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    monkeypatch.setitem(RuntimeOutput.__init__.__kwdefaults__, *("by_thread", True))

    def launch(egress, *, folder, output, descriptors, limits, interpreter):
        return JobProcess(egress, folder=folder, output=output, limits=limits, libraries=made)

    # The keeper would be launched on Linux; no plan chooses how a runtime is started.
    monkeypatch.setattr(starting, "launch", launch)
    return made


@pytest.fixture
def machine(kernel):
    with parts.machine() as made:
        made.supervisor._egress = SuspendingEgress()
        yield made


def spec(machine, *behaviour, **changes):
    spawner = parts.FakeSpawner(behaviour, channels=TCP)
    return machine.spec(spawner=spawner, **changes)


@pytest.fixture(autouse=True)
def by_name(monkeypatch):
    """A descriptor is not inherited on Windows: the model is opened by its name."""

    def by_name(model, _folder, _tier):
        return HandedModel(
            tuple(
                ModelFile(name=file.name, path=file.path, sha256=file.sha256, size=file.size)
                for file in model.files
            )
        )

    monkeypatch.setattr(starting, "hand_on", by_name)


def test_a_runtime_runs_inside_its_job_and_ends_with_it(machine, kernel) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(spec(machine))
        assert kernel.taken == kernel.resumed == [backend.pid]
        assert supervisor.tree() == (backend.pid,)
        assert (await supervisor.check_runtime()).ok
        tree = supervisor.tree()
        await supervisor.stop()
        assert kernel.closed
        assert not any(map(parts.alive, tree))
        assert "started" in supervisor.last_lines

    asyncio.run(life())
    assert machine.leftovers() == []
    assert machine.exits == 0


def test_an_exit_is_told_with_its_code(machine, kernel) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(spec(machine))
        process = machine.supervisor._run.process
        os.kill(backend.pid, signal.SIGKILL)
        await parts.until(lambda: machine.exits)
        assert process.exit_code == -signal.SIGKILL
        await machine.supervisor.stop()

    asyncio.run(life())
    assert kernel.closed
    assert machine.leftovers() == []


def test_an_exit_before_readiness_is_told_with_the_last_lines(machine, kernel) -> None:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec(machine, "exit")))
    assert caught.value.reason is Reason.RUNTIME_EXITED
    assert "started" in machine.supervisor.last_lines
    assert machine.supervisor.last_ending.exit_code == 3
    assert machine.leftovers() == []


def test_a_process_that_no_job_takes_never_runs(machine, kernel) -> None:
    kernel.refuse_assign = True
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec(machine)))
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
    assert machine.supervisor.last_lines == ()
    assert kernel.resumed == []
    assert kernel.closed
    assert machine.leftovers() == []


def test_a_job_that_does_not_end_is_not_reported_as_ended(machine, kernel, monkeypatch) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(spec(machine))
        with monkeypatch.context() as deaf:
            # The double's own call, which reports success and ends nothing.
            deaf.setattr(Kernel, "TerminateJobObject", lambda *_: 1)
            for _ in range(2):
                with pytest.raises(CompanionError) as caught:
                    await machine.supervisor.stop(kill_after=0.1)
                assert caught.value.reason is Reason.STALE_RUNTIME
        assert parts.alive(backend.pid)
        assert not kernel.closed
        await machine.supervisor.stop()
        assert not parts.alive(backend.pid)

    asyncio.run(life())


def test_a_program_that_cannot_be_started_is_told(machine, kernel, monkeypatch) -> None:
    def fail(*_args, **_options):
        raise OSError

    # The doorway fails in place of the system.
    monkeypatch.setattr(machine.supervisor._egress, "start_process", fail)
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec(machine)))
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert kernel.closed
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("code", "told"), [(0, 0), (1, 1), (0xC0000005, 0xC0000005 - 2**32), (0x7FFFFFFF, 2**31 - 1)]
)
def test_a_fault_is_told_as_a_signal(tmp_path, kernel, code, told) -> None:
    async def end() -> JobProcess:
        output = RuntimeOutput(tmp_path / "log")
        process = JobProcess(
            LiveEgress(), folder=tmp_path, output=output, limits=parts.LIMITS, libraries=kernel
        )
        process._take_end(code)
        assert process.exited.is_set()
        assert process.identities() == ()
        await process.stop(terminate_after=0, kill_after=1)
        return process

    assert asyncio.run(end()).exit_code == told
