"""The supervisor with real processes: started, served, stopped, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
import runtime_parts as parts

from companion_core.decisions.lifecycle import State
from companion_core.decisions.runtime_readback import LoopbackChannel
from companion_core.decisions.verdict import OK
from companion_core.egress.interface import EgressRefused
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.runtime.supervisor import Supervisor
from companion_core.testing.fake_runtime import READY

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


def test_a_runtime_is_started_serves_and_leaves_nothing(machine) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(machine.spec())
        assert backend.channel_name == "unix"
        assert backend.served_model == "served"
        assert backend.key is None
        assert isinstance(backend.channel, UnixChannel)
        assert parts.mode(backend.channel.path) == 0o600
        assert parts.mode(Path(backend.channel.path).parent) == 0o700
        assert supervisor.tree() == (backend.pid,)
        assert isinstance(await supervisor.check_runtime(), LoopbackChannel)
        assert supervisor.state is State.STARTING
        supervisor.report_health(ok=True)
        assert supervisor.state is State.READY
        assert supervisor.ready_since is not None
        supervisor.begin_drain()
        assert supervisor.state is State.DRAINING
        await supervisor.stop()
        assert not parts.alive(backend.pid)

    asyncio.run(life())
    assert machine.supervisor.state is State.STOPPED
    assert machine.leftovers() == []
    assert machine.exits == 0
    assert machine.supervisor.last_lines[0] == "started"


def test_the_runtime_opens_the_bytes_that_were_hashed(machine) -> None:
    # covers: spawn_supervision/path-is-verified
    async def life() -> bytes:
        spec = machine.spec()
        hashed = machine.model_file.read_bytes()
        machine.model_file.rename(machine.folder / "aside.gguf")
        machine.model_file.write_bytes(b"another model under the same name")
        backend = await machine.supervisor.start(spec)
        seen = (Path(backend.channel.path).parent / "model.seen").read_bytes()
        await machine.supervisor.stop()
        assert seen == hashed
        return seen

    asyncio.run(life())


def test_a_changed_file_is_not_started(machine) -> None:
    with machine.model_file.open("r+b") as file:
        file.write(b"B")
    os.utime(machine.model_file, ns=(1, 1))
    assert parts.refused_start(machine, machine.spec()).reason is Reason.DIGEST_MISMATCH


def test_an_object_that_is_no_evidence_is_not_started(machine) -> None:
    class Pretender:
        format, model_id, files = "gguf", "tiny", machine.model.files

    assert (
        parts.refused_start(machine, machine.spec(model=Pretender())).reason is Reason.NOT_VERIFIED
    )


def test_the_files_of_a_split_model_keep_their_names(machine) -> None:
    second = machine.folder / "tiny-2.gguf"
    second.write_bytes(b"the rest")
    model = parts.verified_model(machine.model_file, second)
    seen = {}

    def look(plan, request):
        seen.update({file.name: Path(file.path).read_bytes() for file in request.model_files})
        return plan

    async def life() -> None:
        spawner = parts.FakeSpawner(alter=look)
        await machine.supervisor.start(machine.spec(model=model, spawner=spawner))
        await machine.supervisor.stop()

    asyncio.run(life())
    model.close()
    assert seen == {"tiny.gguf": machine.model_file.read_bytes(), "tiny-2.gguf": b"the rest"}


def test_over_tcp_the_backend_gets_a_fresh_key_that_no_log_shows(machine) -> None:
    async def life() -> tuple[str, str]:
        keys = []
        for _ in range(2):
            spawner = parts.FakeSpawner(channels=frozenset({"tcp"}))
            backend = await machine.supervisor.start(machine.spec(spawner=spawner))
            assert isinstance(backend.channel, TcpChannel)
            assert backend.channel.host == "127.0.0.1"
            assert backend.key is not None
            key = backend.key.reveal()
            keys.append(key)
            assert key not in repr(backend)
            command = psutil.Process(backend.pid).cmdline()
            assert not any(key in part for part in command)
            assert (await machine.supervisor.check_runtime()).reason is OK.reason
            await machine.supervisor.stop()
            # The test runtime prints its key on purpose.
            said = machine.supervisor.last_lines[-1]
            assert said.startswith(READY)
            assert said.endswith(" [key]")
            assert key not in (machine.folder / "runtime.log").read_text()
        return keys[0], keys[1]

    first, second = asyncio.run(life())
    assert first != second


def test_the_log_is_the_persons_alone(machine) -> None:
    async def life() -> None:
        await machine.supervisor.start(machine.spec())
        await machine.supervisor.stop()

    asyncio.run(life())
    log = machine.folder / "runtime.log"
    assert log.stat().st_mode & 0o777 == 0o600
    assert "started" in log.read_text()


def test_a_missing_program_is_refused(machine) -> None:
    # covers: spawn_supervision/missing-binary
    error = parts.refused_start(machine, machine.spec(binary=str(machine.folder / "nowhere")))
    assert error.reason is Reason.RUNTIME_NOT_FOUND
    assert isinstance(error, EnvironmentUnavailable)


def test_a_program_that_cannot_be_executed_is_named_by_its_error(machine) -> None:
    machine.program.write_text("#!/nonexistent/interpreter\n")
    error = parts.refused_start(machine, machine.spec())
    assert (error.reason, error.detail) == (Reason.SPAWN_FAILED, "ENOENT")
    machine.program.chmod(0o644)
    error = parts.refused_start(machine, machine.spec())
    assert (error.reason, error.detail) == (Reason.SPAWN_FAILED, "EACCES")


def test_a_runtime_that_exits_before_it_is_ready_is_refused(machine) -> None:
    assert parts.refused_start(machine, machine.spec("exit")).reason is Reason.RUNTIME_EXITED
    assert machine.supervisor.last_lines == ("started",)


def test_a_runtime_that_ends_by_itself_is_told_at_once(machine) -> None:
    # covers: spawn_supervision/child-exit
    async def life() -> None:
        supervisor, told = machine.supervisor, asyncio.Event()
        supervisor.on_exit = told.set
        backend = await supervisor.start(machine.spec())
        supervisor.report_health(ok=True)
        os.kill(backend.pid, signal.SIGKILL)
        await asyncio.wait_for(told.wait(), 30)
        assert supervisor.state is State.STOPPED
        await supervisor.stop()
        second = await supervisor.start(machine.spec())
        assert second.pid != backend.pid
        await supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_failed_first_health_ends_the_runtime(machine) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        machine.supervisor.report_health(ok=False)
        assert machine.supervisor.state is State.STOPPED
        await parts.until(lambda: not parts.alive(backend.pid))
        again = await machine.supervisor.start(machine.spec())
        assert not parts.alive(backend.pid)
        assert machine.supervisor.state is State.STARTING
        assert parts.alive(again.pid)
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []
    assert machine.exits == 0


def test_a_second_start_is_refused_and_harms_nothing(machine) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        with pytest.raises(CompanionError) as caught:
            await machine.supervisor.start(machine.spec())
        assert caught.value.reason is Reason.INVALID_TRANSITION
        assert parts.alive(backend.pid)
        await machine.supervisor.stop()

    asyncio.run(life())


@pytest.mark.parametrize("seconds", [0, 0.01, 0.03, 0.06, 0.1])
def test_a_cancelled_start_leaves_nothing(machine, seconds) -> None:
    async def life() -> None:
        task = asyncio.ensure_future(machine.supervisor.start(machine.spec("hang")))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert machine.supervisor.state is State.STOPPED

    asyncio.run(life())
    assert machine.leftovers() == []


def test_stop_during_a_start_interrupts_it(machine) -> None:
    async def life() -> None:
        task = asyncio.ensure_future(machine.supervisor.start(machine.spec("hang")))
        await parts.until(lambda: machine.supervisor.runtime_pid)
        await machine.supervisor.stop()
        assert machine.leftovers() == []
        with pytest.raises(CompanionError) as caught:
            await task
        assert caught.value.reason is Reason.INTERRUPTED
        assert machine.supervisor.state is State.STOPPED
        assert machine.supervisor.runtime_pid is None

    asyncio.run(life())


def test_a_shut_doorway_refuses_the_start(machine) -> None:
    machine.supervisor = Supervisor(RefusingEgress(), clock=lambda: 0.0)
    with pytest.raises(EgressRefused):
        asyncio.run(machine.supervisor.start(machine.spec()))
    assert machine.leftovers() == []
