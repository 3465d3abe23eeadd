"""A test runtime that starts: waited for, ended at its deadline, or refused with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from dataclasses import replace

import gateway_parts
import pytest
import runtime_parts as parts
import serving_parts

from companion_core.errors import CompanionError, Reason
from companion_core.providers import BackendRequest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc"),
]


class Says200:
    path = "/health"

    def judge(self, response) -> bool:
        return response.status == 200


def unannounced(plan, _request):
    return replace(plan, ready_text=None)


def fake(machine, spawner, health=None):
    return serving_parts.make_serving(
        machine.folder,
        spawner=spawner,
        health=health or Says200(),
        binary=str(machine.program),
        binary_sha256=hashlib.sha256(machine.program.read_bytes()).hexdigest(),
    )


async def wait_in_vain(serving, model) -> CompanionError:
    """Start a runtime that listens and is never healthy; return the error after an hour."""
    health, asked = serving._health, []
    check = health.check

    async def counted(**options):
        asked.append(options)
        return await check(**options)

    health.check = counted
    await serving.open()
    starting = asyncio.ensure_future(serving.start(model))
    # By then the runtime has printed all that it prints.
    await serving_parts.until(lambda: asked)
    serving_parts.time_passes(3000)
    once_more = len(asked) + 2
    await serving_parts.until(lambda: len(asked) >= once_more or starting.done())
    assert not starting.done()
    serving_parts.time_passes(600)
    with pytest.raises(CompanionError) as caught:
        await starting
    await serving.gateway.close()
    return caught.value


@pytest.mark.parametrize("announces", [True, False])
def test_a_runtime_that_is_never_healthy_is_ended_at_its_plans_deadline(machine, announces) -> None:
    """The runtime listens, and always answers "not yet" to its health check."""

    def within_an_hour(plan, _request):
        text = plan.ready_text if announces else None
        return replace(plan, start_deadline_seconds=3600, ready_text=text)

    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("never",), alter=within_an_hour))
        error = await wait_in_vain(serving, machine.model)
        assert error.reason is Reason.START_TIMEOUT
        assert "started" in error.detail
        assert serving.status().lifecycle == "stopped"

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_runtime_that_widens_while_it_loads_is_ended_at_once(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("never",), alter=unannounced))
        await serving.open()
        starting = asyncio.ensure_future(serving.start(machine.model))
        await serving_parts.until(lambda: serving.gateway.backend is not None)
        os.kill(serving._backend.pid, signal.SIGUSR1)
        with pytest.raises(CompanionError) as caught:
            await starting
        assert caught.value.reason is Reason.RUNTIME_LISTENS_WIDE
        await serving.gateway.close()

    asyncio.run(life())


def test_a_start_that_is_stopped_ends_at_once(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("never",), alter=unannounced))
        await serving.open()
        starting = asyncio.ensure_future(serving.start(machine.model))
        await serving_parts.until(lambda: serving.gateway.backend is not None)
        await serving.stop()
        async with asyncio.timeout(30):
            with pytest.raises(CompanionError) as caught:
                await starting
        assert caught.value.reason is Reason.INTERRUPTED
        await serving.gateway.close()

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.mark.parametrize("behaviour", ["busy", "exit"])
def test_the_connection_to_the_gateway_is_made_early_and_closed(machine, behaviour) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("slow", behaviour)))
        gateway, early = serving.gateway, []
        start = serving._supervisor.start

        async def start_and_look(spec):
            backend = await start(spec)
            await serving_parts.until(lambda: early)  # the gateway does not know the backend yet
            return backend

        gateway.context.connections = gateway_parts.NotedConnections(
            lambda _: early.append(gateway.backend is None)
        )
        serving._supervisor.start = start_and_look
        await serving.open()
        with contextlib.suppress(CompanionError):
            await serving.start(machine.model)
        assert early[0]
        await serving.stop()
        async with asyncio.timeout(
            5
        ):  # a client without a token would be cut off after ten seconds
            while gateway.context.connections:  # noqa: ASYNC110 - the end of a connection has no event
                await asyncio.sleep(0.01)
        await gateway.close()

    asyncio.run(life())


class Raises:
    path = "/health"

    def judge(self, _response):
        raise RuntimeError


class SaysPerhaps(Raises):
    def judge(self, _response):
        return 1


@pytest.mark.parametrize("health", [Raises(), SaysPerhaps()])
def test_a_health_check_that_fails_itself_ends_the_start_at_once(machine, health) -> None:
    # covers: shell_sequence/health-check-raises
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(), health)
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(serving, machine.model):
                pass
        assert caught.value.reason is Reason.HEALTH_FAILED
        assert serving.status().lifecycle == "stopped"

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_failed_start_says_what_the_runtime_said_last_without_its_key(machine) -> None:
    def within_an_hour(plan, _request):
        return replace(plan, start_deadline_seconds=3600)

    async def life() -> None:
        spawner = parts.FakeSpawner(("never",), alter=within_an_hour, channels=frozenset({"tcp"}))
        serving = fake(machine, spawner)
        made = []
        make_key = serving._supervisor._make_key
        serving._supervisor._make_key = lambda: made.append(make_key()) or made[-1]
        error = await wait_in_vain(serving, machine.model)
        assert "[key]" in error.detail  # the test runtime prints it on purpose
        assert made[0].reveal() not in error.detail
        # The next failure quotes its own lines, and none if nothing was started.
        spawner.behaviour = ("exit",)
        with pytest.raises(CompanionError) as caught:
            await serving.start(machine.model)
        assert caught.value.reason is Reason.RUNTIME_EXITED
        assert "[key]" not in caught.value.detail
        assert "started" in caught.value.detail
        machine.program.unlink()
        with pytest.raises(CompanionError) as caught:
            await serving.start(machine.model)
        assert caught.value.reason is Reason.RUNTIME_NOT_FOUND
        assert "started" not in caught.value.detail

    asyncio.run(life())


@pytest.mark.parametrize("announces", [True, False])
def test_a_runtime_that_loads_after_it_listens_is_waited_for(machine, announces) -> None:
    # covers: spawn_supervision/health-retry
    def quiet(plan, _request):
        return plan if announces else replace(plan, ready_text=None)

    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("busy",), alter=quiet))
        async with serving_parts.serving_with(serving, machine.model):
            assert serving.lifecycle().ok
            assert serving.resources().ok  # observed meanwhile
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


def test_a_runtime_that_widens_before_its_first_answer_is_told(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("busy",), alter=unannounced))
        supervisor = serving._supervisor
        start = supervisor.start

        async def start_and_widen(spec):
            backend = await start(spec)
            os.kill(backend.pid, signal.SIGUSR1)  # before its first good answer
            return backend

        supervisor.start = start_and_widen
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(serving, machine.model):
                pass
        assert caught.value.reason is Reason.RUNTIME_LISTENS_WIDE

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_runtime_that_exits_before_it_is_ready_is_not_started_again(machine) -> None:
    """The second start exits with code 3, which is permanent."""

    async def life() -> None:
        spawner = parts.FakeSpawner()
        serving = fake(machine, spawner)
        async with serving_parts.serving_with(serving, machine.model):
            spawner.behaviour = ("exit",)
            os.kill(serving.status().runtime.pid, signal.SIGKILL)
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is Reason.RUNTIME_EXITED

    asyncio.run(life())
    assert machine.processes() == []


def test_a_runtime_that_exits_with_1_after_it_was_ready_is_started_again(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner())
        async with serving_parts.serving_with(serving, machine.model):
            before = serving.status().runtime.pid
            os.kill(before, signal.SIGUSR2)
            await serving_parts.until(serving_parts.ready_again(serving, before))
            assert serving.last_ending.exit_code == 1
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


def test_a_program_that_was_replaced_is_not_started_again(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner())
        async with serving_parts.serving_with(serving, machine.model):
            machine.program.write_text(machine.program.read_text() + "\n# changed\n")
            os.kill(serving.status().runtime.pid, signal.SIGKILL)
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is Reason.RUNTIME_CHANGED

    asyncio.run(life())


def test_a_stop_waits_for_the_work_that_follows_the_first_answer(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner())
        settled = []

        async def settle() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                settled.append(parts.alive(pid))

        serving._supervisor.settle = settle
        await serving.open()
        await serving.start(machine.model)
        assert serving.lifecycle().ok
        pid = serving.status().runtime.pid
        await asyncio.sleep(0)  # it begins
        await serving.stop()
        await serving.gateway.close()
        assert settled == [True]  # before the runtime is ended

    asyncio.run(life())


@pytest.mark.parametrize("path", ["/create", "/stumble"])
def test_a_runtime_that_takes_one_connection_at_a_time_is_served(machine, path) -> None:
    """At `/stumble` it fails once; a connection made early would block the next attempt."""

    def prepared(plan, _request):
        first = BackendRequest(method="POST", path="/create")
        last = BackendRequest(method="POST", path=path)
        return replace(plan, prepare=(first, last), start_deadline_seconds=20)

    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(alter=prepared))
        async with serving_parts.serving_with(serving, machine.model):
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())
