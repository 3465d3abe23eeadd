"""The real llama.cpp behind its gateway, hurt in every way: it comes back or says why not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import gateway_parts
import pytest
import runtime_parts as parts
import serving_parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.providers import BackendRequest
from companion_core.runtime.isolation import probe_isolation

MODEL = Path(__file__).parents[2] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
MODULE = "companion_runtime_llamacpp.embedded"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc"),
]


# In bubblewrap, as both real runtimes run by default: `test_runtime_crashes.py`.
@pytest.fixture(params=[Tier.NONE, Tier.LANDLOCK])
def tier(request, require_real):
    working = {state.tier for state in probe_isolation(LiveEgress()) if state.works}
    require_real(request.param.value, request.param in working | {Tier.NONE})
    return request.param


@pytest.fixture
def model():
    made = parts.verified_model(MODEL)
    yield made
    made.close()


@pytest.fixture
def llama(tmp_path, require_real):
    for name in ("companion_runtime_llamacpp", "xllamacpp"):
        require_real(name, importlib.util.find_spec(name) is not None)
    from companion_runtime_llamacpp.plugin import (  # noqa: PLC0415 - if installed
        companion_health,
        companion_spawn,
    )

    def make(**changes):
        return serving_parts.make_serving(
            tmp_path,
            spawner=changes.pop("spawner", companion_spawn()),
            health=companion_health(),
            modules=frozenset({MODULE}),
            **changes,
        )

    return make


def ready_again(serving, before: int):
    def check() -> bool:
        pid = (serving.status()["runtime"] or {}).get("pid", before)
        return pid != before and serving.lifecycle().ok

    return check


def delete_socket(serving) -> None:
    Path(serving._backend.channel.path).unlink()


HURTS = {
    "SIGKILL": lambda serving: os.kill(serving.status()["runtime"]["pid"], signal.SIGKILL),
    "SIGTERM": lambda serving: os.kill(serving.status()["runtime"]["pid"], signal.SIGTERM),
    "SIGSTOP": lambda serving: os.kill(serving.status()["runtime"]["pid"], signal.SIGSTOP),
    "socket deleted": delete_socket,
}


@pytest.mark.parametrize("hurt", HURTS)
def test_a_hurt_runtime_is_replaced_behind_the_same_address(llama, model, tier, hurt) -> None:
    # covers: spawn_supervision/health-timeout
    async def life() -> None:
        serving = llama(tier=tier)
        async with serving_parts.serving_with(serving, model):
            before, url = serving.status()["runtime"]["pid"], serving.gateway.base_url
            assert (await serving_parts.chat(serving))[0] == 200
            HURTS[hurt](serving)
            await serving_parts.until(ready_again(serving, before))
            assert serving.gateway.base_url == url
            assert (await serving_parts.chat(serving))[0] == 200
            assert not parts.alive(before)
            assert serving.watchdog.gave_up is None

    asyncio.run(life())


def test_health_is_asked_through_the_gateway_with_the_token(llama, model) -> None:
    # covers: spawn_supervision/health-through-front-door
    async def life() -> None:
        serving = llama(timing=replace(serving_parts.QUICK, health_interval=3600))
        async with serving_parts.serving_with(serving, model):
            before = serving.gateway.metrics_text()
            assert (await serving.probe()).ok
            assert serving.gateway.metrics_text() != before  # it was counted there
            serving._health._token = "x" * 43
            assert not (await serving.probe()).ok
            serving._health._token = serving_parts.TOKEN
            await serving.gateway.close()
            assert not (await serving.probe()).ok

    asyncio.run(life())


@pytest.mark.usefixtures("each_event_loop")
def test_one_that_computes_a_token_says_so(llama, model) -> None:
    async def life() -> None:
        serving = llama(timing=replace(serving_parts.QUICK, health_interval=3600))
        async with serving_parts.serving_with(serving, model):
            assert await serving.computes()

    asyncio.run(life())


def test_one_that_computes_no_more_is_noticed_though_it_says_it_is_well(llama, model) -> None:
    async def life() -> None:
        serving = llama(timing=replace(serving_parts.QUICK, unresponsive_after=3600))
        async with serving_parts.serving_with(serving, model):
            before = serving.status()["runtime"]["pid"]
            real, answers = serving.computes, []

            async def noted() -> bool:
                answers.append(await real() if answers else False)
                return answers[-1]

            serving.computes = noted
            # A single bad answer is no reason yet; health says it is well, and tokens come.
            await serving_parts.until(lambda: answers[:3] == [False, True, True])
            assert serving.status()["runtime"]["pid"] == before

            async def never() -> bool:
                return False

            serving.watchdog._timing = serving_parts.QUICK
            serving.computes = never
            await serving_parts.until(lambda: serving._supervisor.state is State.STOPPED)
            serving.computes = real
            await serving_parts.until(ready_again(serving, before))

    asyncio.run(life())


def test_over_its_ceiling_it_is_drained_started_smaller_and_then_refused(llama, model) -> None:
    # covers: spawn_supervision/ram-ceiling
    async def life() -> None:
        serving = llama(context_length=1024)
        async with serving_parts.serving_with(serving, model):
            pid, parallel = serving.status()["runtime"]["pid"], serving.size.parallel
            restart, started = serving.restart, []

            async def noted() -> None:
                await restart()
                started.append((ready_again(serving, pid)(), serving.size.parallel))

            serving.restart = noted
            ceiling = replace(serving_parts.LIMITS, max_ram_bytes=1024 * 1024)
            serving._monitor._limits = ceiling
            await serving_parts.until(lambda: serving.resources().reason is Reason.RAM_OVER_LIMIT)
            status, answer = await serving_parts.chat(serving)
            assert status == 503  # already drained, if this machine is slow
            assert answer["error"]["code"] in {Reason.RAM_OVER_LIMIT, Reason.NOT_READY}
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert all(ready and smaller < parallel for ready, smaller in started)
            assert started
            assert serving.watchdog.gave_up is Reason.RAM_OVER_LIMIT
            assert serving.status()["lifecycle"] == "stopped"
            assert serving.status()["gave_up"] == "ram_over_limit"

    asyncio.run(life())


def test_a_model_that_does_not_fit_is_refused_before_the_start(llama, model, monkeypatch) -> None:
    async def life() -> None:
        monkeypatch.setattr(
            "companion_core.runtime.resources.free_memory.available_memory", lambda: 1000
        )
        serving = llama()
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(serving, model):
                pass
        assert caught.value.reason is Reason.MEMORY_SHORT

    asyncio.run(life())


class Says200:
    path = "/health"

    def judge(self, response) -> bool:
        return response.status == 200


def unannounced(plan, _request):
    return replace(plan, ready_text=None)


@pytest.fixture
def machine():
    with parts.machine() as made:
        yield made


def fake(machine, spawner, health=None):
    return serving_parts.make_serving(
        machine.folder,
        spawner=spawner,
        health=health or Says200(),
        binary=str(machine.program),
        binary_sha256=hashlib.sha256(machine.program.read_bytes()).hexdigest(),
    )


async def wait_in_vain(serving, model) -> CompanionError:
    """Start what listens and is never well; return what is said when an hour is over."""
    asked, probe = [], serving.probe

    async def counted(**options):
        asked.append(options)
        return await probe(**options)

    serving.probe = counted
    await serving.open()
    starting = asyncio.ensure_future(serving.start(model))
    # From then on it has said all that it says.
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
def test_one_that_is_never_well_is_ended_at_its_plans_own_deadline(machine, announces) -> None:
    """It listens and answers, and its health check is always answered "not yet"."""

    def within_an_hour(plan, _request):
        text = plan.ready_text if announces else None
        return replace(plan, start_deadline_seconds=3600, ready_text=text)

    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("never",), alter=within_an_hour))
        error = await wait_in_vain(serving, machine.model)
        assert error.reason is Reason.START_TIMEOUT
        assert "started" in error.detail
        assert serving.status()["lifecycle"] == "stopped"

    asyncio.run(life())
    assert machine.leftovers() == []


def test_one_that_widens_and_never_gets_ready_is_ended_before_its_deadline(machine) -> None:
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
def test_the_way_to_the_gateway_is_there_before_it_is_needed_and_is_let_go_of(
    machine, behaviour
) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(("slow", behaviour)))
        gateway, early = serving.gateway, []
        start = serving._supervisor.start

        async def start_and_look(spec):
            backend = await start(spec)
            await serving_parts.until(lambda: early)  # nobody has heard of the backend yet
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
        async with asyncio.timeout(5):  # a stranger's is cut after ten seconds
            while gateway.context.connections:  # noqa: ASYNC110 - tells nobody
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
        assert serving.status()["lifecycle"] == "stopped"

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
        assert made[0] not in error.detail
        # The next failure has lines of its own, and none where nothing was started.
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
def test_one_that_loads_behind_its_listener_is_waited_for(machine, announces) -> None:
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


def test_one_that_listens_wider_while_it_loads_is_ended_and_said_so(machine) -> None:
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


def test_what_ends_by_itself_before_it_is_ready_is_not_tried_again(machine) -> None:
    """The second start ends with code 3: permanent, and said so."""

    async def life() -> None:
        spawner = parts.FakeSpawner()
        serving = fake(machine, spawner)
        async with serving_parts.serving_with(serving, machine.model):
            spawner.behaviour = ("exit",)
            os.kill(serving.status()["runtime"]["pid"], signal.SIGKILL)
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is Reason.RUNTIME_EXITED

    asyncio.run(life())
    assert machine.processes() == []


def test_one_that_exits_with_1_once_it_was_ready_is_started_again(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner())
        async with serving_parts.serving_with(serving, machine.model):
            before = serving.status()["runtime"]["pid"]
            os.kill(before, signal.SIGUSR2)
            await serving_parts.until(ready_again(serving, before))
            assert serving.last_ending.exit_code == 1
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


def test_a_program_that_was_replaced_is_not_started_again(machine) -> None:
    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner())
        async with serving_parts.serving_with(serving, machine.model):
            machine.program.write_text(machine.program.read_text() + "\n# changed\n")
            os.kill(serving.status()["runtime"]["pid"], signal.SIGKILL)
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is Reason.RUNTIME_CHANGED

    asyncio.run(life())


def test_what_is_done_behind_the_first_answer_is_over_when_a_stop_is(machine) -> None:
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
        pid = serving.status()["runtime"]["pid"]
        await asyncio.sleep(0)  # it begins
        await serving.stop()
        await serving.gateway.close()
        assert settled == [True]  # before the runtime is ended

    asyncio.run(life())


@pytest.mark.parametrize("path", ["/create", "/stumble"])
def test_one_that_takes_one_connection_at_a_time_is_prepared_and_served(machine, path) -> None:
    """At `/stumble` it fails once; a connection made ahead would be in the way of the next try."""

    def prepared(plan, _request):
        first = BackendRequest(method="POST", path="/create")
        last = BackendRequest(method="POST", path=path)
        return replace(plan, prepare=(first, last), start_deadline_seconds=20)

    async def life() -> None:
        serving = fake(machine, parts.FakeSpawner(alter=prepared))
        async with serving_parts.serving_with(serving, machine.model):
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())
