"""The supervisor with real processes: started, served, stopped, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest
import runtime_parts as parts
from port_thief import received_by

from companion_core.decisions.lifecycle import State
from companion_core.decisions.runtime_readback import LoopbackChannel
from companion_core.decisions.verdict import OK, refuse
from companion_core.egress.interface import EgressRefused
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.providers import BackendRequest, TcpChannel, UnixChannel
from companion_core.runtime import supervisor as supervisor_module
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.start import readiness
from companion_core.runtime.start.backend_store import BackendStore
from companion_core.runtime.supervisor import Supervisor
from companion_core.testing.fake_runtime import READY

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


def refused_start(machine, spec) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec))
    assert machine.supervisor.state is State.STOPPED
    assert machine.supervisor.runtime_pid is None
    assert machine.leftovers() == []
    assert machine.exits == 0
    return caught.value


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
    assert refused_start(machine, machine.spec()).reason is Reason.DIGEST_MISMATCH


def test_an_object_that_is_no_evidence_is_not_started(machine) -> None:
    class Pretender:
        format, model_id, files = "gguf", "tiny", machine.model.files

    assert refused_start(machine, machine.spec(model=Pretender())).reason is Reason.NOT_VERIFIED


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
    error = refused_start(machine, machine.spec(binary=str(machine.folder / "nowhere")))
    assert error.reason is Reason.RUNTIME_NOT_FOUND
    assert isinstance(error, EnvironmentUnavailable)


def test_a_program_that_cannot_be_executed_is_named_by_its_error(machine) -> None:
    machine.program.write_text("#!/nonexistent/interpreter\n")
    error = refused_start(machine, machine.spec())
    assert (error.reason, error.detail) == (Reason.SPAWN_FAILED, "ENOENT")
    machine.program.chmod(0o644)
    error = refused_start(machine, machine.spec())
    assert (error.reason, error.detail) == (Reason.SPAWN_FAILED, "EACCES")


def test_a_runtime_that_exits_before_it_is_ready_is_refused(machine) -> None:
    assert refused_start(machine, machine.spec("exit")).reason is Reason.RUNTIME_EXITED
    assert machine.supervisor.last_lines == ("started",)


@pytest.mark.parametrize("announces", [True, False])
def test_a_runtime_that_is_never_ready_is_refused(machine, announces) -> None:
    def hurry(plan, _request):
        text = plan.ready_text if announces else None
        return replace(plan, start_deadline_seconds=0.3, ready_text=text)

    spec = machine.spec(spawner=parts.FakeSpawner(("hang",), alter=hurry))
    assert refused_start(machine, spec).reason is Reason.START_TIMEOUT


@pytest.mark.usefixtures("each_event_loop")
def test_without_an_announcement_the_socket_shows_readiness(machine) -> None:
    async def life() -> None:
        spawner = parts.FakeSpawner(alter=lambda plan, _: replace(plan, ready_text=None))
        await machine.supervisor.start(machine.spec(spawner=spawner))
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_lost_channel_is_waited_for_during_the_start_alone(machine, monkeypatch) -> None:
    """Some runtimes close the listener that they had while loading, and open it anew."""

    async def life() -> None:
        supervisor = machine.supervisor
        await supervisor.start(machine.spec())
        lost = refuse(Reason.HEALTH_FAILED)
        # A channel that is lost at exactly this moment cannot be had from a real process.
        monkeypatch.setattr(supervisor_module, "read_back_patiently", lambda _watched: lost)
        assert await supervisor.check_runtime() == lost
        assert supervisor.state is State.STARTING
        supervisor.report_health(ok=True)
        assert await supervisor.check_runtime() == lost
        assert supervisor.state is State.STOPPED
        assert supervisor.last_ending.reason is Reason.HEALTH_FAILED
        await supervisor.stop()

    asyncio.run(life())


@pytest.mark.parametrize("requests", [(), (BackendRequest(method="POST", path="/create"),)])
def test_an_announcement_counts_where_nothing_is_sent_before_health(
    machine, requests, monkeypatch
) -> None:
    """The runtime prints its first line before it listens."""
    tried, accepts = [], readiness._accepts

    async def noted(*args):
        tried.append(await accepts(*args))
        return tried[-1]

    def early(plan, _request):
        return replace(plan, ready_text="started", prepare=requests)

    async def life() -> None:
        # Counts the attempts and makes each of them; the start reports none.
        monkeypatch.setattr(readiness, "_accepts", noted)
        spawner = parts.FakeSpawner(("slow",), alter=early)
        await machine.supervisor.start(machine.spec(spawner=spawner))
        await machine.supervisor.stop()

    asyncio.run(life())
    assert tried[-1:] == ([True] if requests else [])


def test_a_read_back_is_skipped_only_while_the_last_one_is_recent(machine) -> None:
    """After the signal the runtime listens wide; what was found before counts for an hour."""

    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(machine.spec())
        os.kill(backend.pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(supervisor.tree()))
        assert await supervisor.check_runtime(max_age=3600) == OK
        assert (await supervisor.check_runtime()).reason is Reason.RUNTIME_LISTENS_WIDE
        assert not (await supervisor.check_runtime(max_age=3600)).ok
        await supervisor.stop()

    asyncio.run(life())


def test_a_foreign_listener_on_the_port_is_never_taken_for_the_runtime(machine) -> None:
    # covers: spawn_supervision/health-identity
    with socket.socket() as thief:

        def steal(plan, request):
            thief.bind((request.channel.host, request.channel.port))
            thief.listen()
            return replace(plan, ready_text=None)

        spawner = parts.FakeSpawner(alter=steal, channels=frozenset({"tcp"}))
        error = refused_start(machine, machine.spec(spawner=spawner))
        assert error.reason is Reason.RUNTIME_EXITED
        assert received_by(thief, 1) == b""


@pytest.mark.usefixtures("each_event_loop")
def test_prepare_is_sent_and_its_answers_are_required(machine) -> None:
    good = BackendRequest(
        method="POST", path="/create", json="{}", expect_last_line='{"status":"success"}'
    )
    upload = BackendRequest(method="POST", path="/blob", send_model=True)

    def with_prepare(*requests):
        return lambda plan, _request: replace(plan, prepare=requests)

    async def life() -> None:
        spawner = parts.FakeSpawner(alter=with_prepare(good, upload))
        await machine.supervisor.start(machine.spec(spawner=spawner))
        await machine.supervisor.stop()

    asyncio.run(life())
    for bad in (
        BackendRequest(method="POST", path="/refuse", json="{}"),
        replace(good, expect_last_line='{"status":"working"}'),
    ):
        spawner = parts.FakeSpawner(alter=with_prepare(good, bad))
        error = refused_start(machine, machine.spec(spawner=spawner))
        assert error.reason is Reason.SPAWN_FAILED


def test_a_linked_model_is_the_hashed_inode_and_hands_no_descriptor_on(machine) -> None:
    def link(plan, request):
        place = f"{request.data_dir}/blobs/model"
        argv = (plan.argv[0], place, *plan.argv[2:])
        return replace(plan, argv=argv, model_link=place, model_copies=(place,))

    async def life() -> None:
        for _ in range(2):
            spawner = parts.FakeSpawner(alter=link)
            backend = await machine.supervisor.start(machine.spec(spawner=spawner))
            place = machine.folder / "data" / "blobs" / "model"
            assert place.samefile(machine.model_file)
            opened = [file.path for file in psutil.Process(backend.pid).open_files()]
            assert str(machine.model_file) not in opened
            await machine.supervisor.stop()
            place.unlink()
            place.write_bytes(b"left by somebody")  # replaced by the next start

    asyncio.run(life())


def test_a_copy_that_is_not_the_model_ends_the_start(machine) -> None:
    def copied(plan, request):
        place = Path(request.data_dir) / "copy"
        place.write_bytes(b"another model")
        return replace(plan, model_copies=(str(place),))

    error = refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=copied)))
    assert error.reason is Reason.DIGEST_MISMATCH


def storing(machine) -> Any:
    """Return a start whose runtime stores something for the next start."""
    store = machine.folder / "data" / "store"

    def planned(plan, _request):
        return replace(plan, store=str(store))

    (machine.folder / "data").mkdir(mode=0o700)
    store.mkdir()
    (store / "made").write_text("by the runtime")
    return machine.spec(spawner=parts.FakeSpawner(alter=planned))


def test_the_store_is_recorded_once_the_runtime_serves(machine) -> None:
    spec = storing(machine)

    async def life() -> None:
        await machine.supervisor.start(spec)
        await machine.supervisor.stop()
        assert not spec.store_record.exists()
        await machine.supervisor.start(spec)
        await machine.supervisor.settle()
        await machine.supervisor.stop()
        assert '"files"' in spec.store_record.read_text()

    asyncio.run(life())


def test_a_listener_opened_after_the_start_ends_the_runtime(machine) -> None:
    spec = storing(machine)

    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(spec)
        supervisor.report_health(ok=True)
        os.kill(backend.pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(supervisor.tree()))
        await supervisor.settle()
        assert supervisor.last_ending.reason is Reason.RUNTIME_LISTENS_WIDE
        await supervisor.stop()
        assert not spec.store_record.exists()

    asyncio.run(life())
    assert machine.leftovers() == []


def prepared(plan, _request):
    return replace(plan, prepare=(BackendRequest(method="POST", path="/create"),) * 2)


def test_a_listener_opened_while_it_prepares_ends_the_runtime(machine, monkeypatch) -> None:
    send, asked = readiness.send_prepare, []

    async def widening(*args: Any, **options: Any) -> None:
        await send(*args, **options)
        os.kill(machine.supervisor.runtime_pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(machine.supervisor.tree()))

    # The listener has to open after the last request and before the read-back.
    monkeypatch.setattr(readiness, "send_prepare", widening)
    machine.tell(lambda event: event == "prepared" and asked.append(True))
    error = refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=prepared)))
    assert error.reason is Reason.RUNTIME_LISTENS_WIDE
    assert asked == [True]


def test_health_is_asked_after_all_that_is_prepared(machine, monkeypatch) -> None:
    steps: list[str] = []
    read_back, send = readiness.read_back, readiness.send_prepare

    def looked(watched: Any, **options: Any) -> Any:
        verdict = read_back(watched, **options)
        if verdict.ok:
            steps.append("look")
        return verdict

    async def sent(*args: Any, **options: Any) -> None:
        steps.append("request")
        await send(*args, **options)

    # Notes the order of the steps, and takes each of them.
    monkeypatch.setattr(readiness, "read_back", looked)
    monkeypatch.setattr(readiness, "send_prepare", sent)
    machine.tell(steps.append)

    async def life() -> None:
        spec = machine.spec(spawner=parts.FakeSpawner(alter=prepared))
        await machine.supervisor.start(spec)
        await machine.supervisor.stop()

    asyncio.run(life())
    assert steps.count("request") == 2
    in_order = [step for step, _ in groupby(steps)]
    # A runtime that takes one connection at a time has closed that of its last request by then.
    assert in_order == ["launched", "look", "request", "connectable", "prepared", "look"]


def test_without_preparation_the_connection_is_made_during_read_back(machine, monkeypatch) -> None:
    steps: list[str] = []
    read_back = readiness.read_back

    def looked(watched: Any, **options: Any) -> Any:
        verdict = read_back(watched, **options)
        if verdict.ok:
            steps.append("look")
        return verdict

    # Notes the order of the steps, and takes each of them.
    monkeypatch.setattr(readiness, "read_back", looked)
    machine.tell(steps.append)

    async def life() -> None:
        await machine.supervisor.start(machine.spec())
        await machine.supervisor.stop()

    asyncio.run(life())
    # Nothing is sent before the read-back (I-07).
    assert steps[steps.index("connectable") :] == ["connectable", "look", "prepared"]


@pytest.mark.parametrize("how", ["it ends", "the writing is cancelled"])
def test_the_store_of_a_runtime_that_has_ended_is_not_recorded(machine, monkeypatch, how) -> None:
    spec, surveying, survey = storing(machine), threading.Event(), BackendStore._survey

    def slow(store: BackendStore) -> Any:
        surveying.set()
        assert store._cancelled.wait(30)
        return survey(store)

    async def life() -> None:
        # The survey has to last until the runtime has ended.
        monkeypatch.setattr(BackendStore, "_survey", slow)
        backend = await machine.supervisor.start(spec)
        settling = asyncio.ensure_future(machine.supervisor.settle())
        assert await asyncio.to_thread(surveying.wait, 30)
        if how == "it ends":
            os.kill(backend.pid, signal.SIGKILL)
        else:
            settling.cancel()
        await asyncio.wait({settling}, timeout=30)
        assert settling.done()
        await machine.supervisor.stop()

    asyncio.run(life())
    assert not spec.store_record.exists()


@pytest.mark.parametrize("error", [OSError(28, "no space"), Refused(Reason.STATE_PATH_UNSAFE)])
def test_a_store_that_cannot_be_recorded_costs_nothing_else(machine, monkeypatch, error) -> None:
    spec = storing(machine)

    def failing(*_args: Any) -> None:
        raise error

    async def life() -> None:
        # A full disk cannot be had here.
        monkeypatch.setattr(BackendStore, "_survey", failing)
        await machine.supervisor.start(spec)
        machine.supervisor.report_health(ok=True)
        await machine.supervisor.settle()
        assert machine.supervisor.state is State.READY
        await machine.supervisor.stop()
        assert not spec.store_record.exists()

    asyncio.run(life())
    assert machine.exits == 0


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
