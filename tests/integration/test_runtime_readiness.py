"""Which file counts as a runtime's socket: one that accepts, and no link."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import runtime_parts as parts
from port_thief import received_by

from companion_core.decisions.lifecycle import State
from companion_core.decisions.verdict import OK, refuse
from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason
from companion_core.providers import BackendRequest, UnixChannel
from companion_core.runtime import supervisor as supervisor_module
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.start import readiness

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]


def accepts(path) -> bool:
    channel = UnixChannel(path=str(path))
    return readiness._is_in_place(channel) and asyncio.run(
        readiness._accepts(LiveEgress(), channel)
    )


def test_a_socket_counts_and_is_made_owner_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()
        assert accepts("s")
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_a_link_to_another_programs_socket_does_not_count_and_is_not_followed(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind("foreign")
        foreign.listen()
        (tmp_path / "foreign").chmod(0o660)
        (tmp_path / "s").symlink_to("foreign")
        assert not accepts("s")
        assert (tmp_path / "foreign").stat().st_mode & 0o777 == 0o660


def test_a_missing_socket_does_not_count(tmp_path) -> None:
    assert not accepts(tmp_path / "s")


@pytest.mark.parametrize("announces", [True, False])
def test_a_runtime_that_is_never_ready_is_refused(machine, announces) -> None:
    def hurry(plan, _request):
        text = plan.ready_text if announces else None
        return replace(plan, start_deadline_seconds=0.3, ready_text=text)

    spec = machine.spec(spawner=parts.FakeSpawner(("hang",), alter=hurry))
    assert parts.refused_start(machine, spec).reason is Reason.START_TIMEOUT


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
        error = parts.refused_start(machine, machine.spec(spawner=spawner))
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
        error = parts.refused_start(machine, machine.spec(spawner=spawner))
        assert error.reason is Reason.SPAWN_FAILED


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
    error = parts.refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=prepared)))
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
