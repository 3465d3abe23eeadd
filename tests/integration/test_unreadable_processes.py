"""While the system does not say what became of a process, it is not taken for ended.

The failing reads are made up; the processes are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.lifecycle import State
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.runtime import supervisor
from companion_core.runtime.inspect import readback
from companion_core.runtime.isolation import confinement
from companion_core.runtime.process import proc_files, reclaim
from companion_core.runtime.process import tree as process_tree
from companion_core.runtime.start import sequence as starting

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="read in /proc"),
]

EGRESS = LiveEgress()
FOR_EVER = 10**9


class Sight:
    """How many reads of processes fail from now on, and with which error."""

    def __init__(self, number: int) -> None:
        self.failing = 0
        self._number = number

    def through(self, real: Callable[..., bytes]) -> Callable[..., bytes]:
        def read(path: str | Path) -> bytes:
            if self.failing and str(path).startswith("/proc/") and "self" not in str(path):
                self.failing -= 1
                raise OSError(self._number, os.strerror(self._number))
            return real(path)

        return read


@pytest.fixture(params=[errno.EMFILE, errno.ENFILE, errno.EIO])
def sight(request, monkeypatch):
    made = Sight(request.param)
    for module in (proc_files, process_tree, readback, reclaim):
        # The failing reads stand below every seam: /proc itself cannot be made to fail.
        monkeypatch.setattr(module, "read_entry", made.through(module.read_entry))
    monkeypatch.setattr(Path, "read_bytes", made.through(Path.read_bytes))
    return made


def test_a_runtime_that_cannot_be_read_back_is_ended(machine, sight) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        machine.supervisor.report_health(ok=True)
        sight.failing = FOR_EVER
        verdict = await machine.supervisor.check_runtime()
        assert (verdict.ok, verdict.reason) == (False, Reason.PROCESS_UNREADABLE)
        assert machine.exits == 1
        assert machine.supervisor.state is State.STOPPED
        assert machine.supervisor.last_ending.reason is Reason.PROCESS_UNREADABLE
        await machine.supervisor.stop()
        assert not parts.alive(backend.pid)

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_look_that_fails_for_a_moment_costs_a_runtime_nothing(machine, sight) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        machine.supervisor.report_health(ok=True)
        sight.failing = 3
        assert (await machine.supervisor.check_runtime()).ok
        assert sight.failing == 0
        assert machine.supervisor.state is State.READY
        assert parts.alive(backend.pid)
        await machine.supervisor.stop()

    asyncio.run(life())


def test_no_descriptor_left_for_a_moment_costs_a_runtime_nothing(machine) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        machine.supervisor.report_health(ok=True)
        assert (
            await machine.supervisor.check_runtime()
        ).ok  # modules that are imported on first use are loaded
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        held: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            looking = asyncio.ensure_future(machine.supervisor.check_runtime())
            await asyncio.sleep(0.2)
            assert not looking.done()
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await looking).ok
        assert parts.alive(backend.pid)
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_runtime_that_cannot_be_read_back_at_its_start_is_not_served(
    machine, sight, monkeypatch
) -> None:
    until_serving = starting.until_serving

    async def look_in_vain(*arguments, **named):
        assert machine.supervisor.runtime_pid is not None
        sight.failing = FOR_EVER
        return await until_serving(*arguments, **named)

    # The reads have to fail from exactly this step of the start on.
    monkeypatch.setattr(starting, "until_serving", look_in_vain)
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(machine.spec()))
    assert caught.value.reason is Reason.PROCESS_UNREADABLE
    assert machine.leftovers() == []


@pytest.fixture
def no_namespaces(monkeypatch) -> None:
    """The system grants none, so that the tree does not end with its keeper by itself."""
    monkeypatch.setattr(confinement, "OWN_NAMESPACES", False)


async def with_a_killed_keeper(machine) -> int:
    """Start a runtime with a child that outlives it, kill its keeper, and return the child."""
    spawner = parts.FakeSpawner(("leak",), child_env_names=frozenset({"SMUGGLED"}))
    backend = await machine.supervisor.start(machine.spec(spawner=spawner))
    (child,) = set(machine.supervisor.tree()) - {backend.pid}
    keeper = json.loads((machine.folder / "runtime.json").read_bytes())["processes"][0][0]
    os.kill(keeper, signal.SIGKILL)
    return child


@pytest.mark.usefixtures("no_namespaces")
def test_a_tree_is_looked_for_until_it_can_be_read(machine, sight) -> None:
    async def life() -> None:
        sight.failing = 0
        child = await with_a_killed_keeper(machine)
        sight.failing = 20
        await machine.supervisor.stop()
        assert sight.failing == 0
        assert not parts.alive(child)

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.mark.usefixtures("no_namespaces")
def test_a_tree_that_is_never_read_is_not_reported_as_ended(machine, sight, monkeypatch) -> None:
    # The supervisor takes no such time; ten seconds would be waited for in vain.
    monkeypatch.setattr(supervisor, "KILL_AFTER_SECONDS", 0.1)

    async def life() -> None:
        child = await with_a_killed_keeper(machine)
        sight.failing = FOR_EVER
        for _ in range(2):
            with pytest.raises(CompanionError) as caught:
                await machine.supervisor.stop(terminate_after=0, kill_after=0.1)
            assert caught.value.reason is Reason.STALE_RUNTIME
        with pytest.raises(CompanionError) as caught:  # not beside processes that may be left
            await machine.supervisor.start(machine.spec())
        assert caught.value.reason is Reason.STALE_RUNTIME
        assert (machine.folder / "runtime.json").exists()
        assert parts.alive(child)
        sight.failing = 0
        await machine.supervisor.stop(kill_after=30)
        assert not parts.alive(child)
        assert not (machine.folder / "runtime.json").exists()

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.fixture
def stale(tmp_path):
    """A runtime that a killed companion and its killed keeper left, its record and its folder."""
    place = tmp_path / "run" / "0badcafe"
    place.mkdir(parents=True)
    environment = {"HOME": str(place), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(["/bin/sleep", "60"], env=environment, cwd=place) as process:
        assert parts.wait_until(lambda: parts.environment(process.pid) == environment)
        record = tmp_path / "runtime.json"
        yield process, record, place
        process.kill()


def write_record(process, record, place, *, known: bool) -> None:
    """Record the process itself, with another folder, or its folder alone."""
    if known:
        reclaim.record(record, [EGRESS.identify(process.pid)], place.with_name("cafe0bad"))
    else:
        reclaim.record(record, [], place)


@pytest.mark.parametrize("known", [True, False], ids=["recorded", "marked"])
def test_a_left_runtime_is_looked_for_until_it_can_be_read(stale, sight, known) -> None:
    process, record, place = stale
    write_record(*stale, known=known)
    sight.failing = 3
    pauses: list[float] = []
    assert reclaim.reclaim(record, place.parent, EGRESS, sleep=pauses.append) == 1
    assert process.wait(10) == -signal.SIGKILL
    assert pauses
    assert not record.exists()


@pytest.mark.parametrize("known", [True, False], ids=["recorded", "marked"])
def test_a_left_runtime_that_is_never_read_is_not_reported_as_ended(stale, sight, known) -> None:
    process, record, place = stale
    write_record(*stale, known=known)
    sight.failing = FOR_EVER
    with pytest.raises(CompanionError) as caught:
        reclaim.reclaim(record, place.parent, EGRESS, sleep=lambda _seconds: None)
    assert caught.value.reason is Reason.PROCESS_UNREADABLE
    assert process.poll() is None
    assert record.exists()  # the next start tries again
    assert place.exists()
    sight.failing = 0
    assert reclaim.reclaim(record, place.parent, EGRESS) == 1


def test_a_marked_runtime_is_found_after_its_folder_was_removed(stale) -> None:
    process, record, place = stale
    reclaim.record(record, [], place)
    place.rmdir()
    assert reclaim.reclaim(record, place.parent, EGRESS) == 1
    assert process.wait(10) == -signal.SIGKILL


def test_a_process_in_a_folder_too_deep_to_read_is_another_persons(stale, tmp_path) -> None:
    process, record, place = stale
    reclaim.record(record, [], place)
    code = (
        "import os, sys\n"
        "for _ in range(20):\n"
        "    os.mkdir('x' * 250)\n"
        "    os.chdir('x' * 250)\n"
        "print('deep', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-IS", "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as deep:
        assert deep.stdout.readline() == b"deep\n"
        with pytest.raises(OSError, match="too long"):
            Path(f"/proc/{deep.pid}/cwd").readlink()
        assert reclaim.reclaim(record, place.parent, EGRESS) == 1
        assert deep.poll() is None
    assert process.wait(10) == -signal.SIGKILL
