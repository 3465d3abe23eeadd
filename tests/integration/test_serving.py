"""The real llama.cpp behind its gateway, hurt in every way: it comes back or says why not."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_parts as parts
import serving_parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.errors import CompanionError, Reason
from companion_core.system.secret import Secret

MODEL = Path(__file__).parents[2] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
MODULE = "companion_runtime_llamacpp.embedded"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc"),
]


# In bubblewrap, as both real runtimes run by default: `test_runtime_crashes.py`.
@pytest.fixture(params=[Tier.NONE, Tier.LANDLOCK])
def tier(request, require_tier):
    require_tier(request.param)
    return request.param


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


def delete_socket(serving) -> None:
    Path(serving._backend.channel.path).unlink()


HURTS = {
    "SIGKILL": lambda serving: os.kill(serving.status().runtime.pid, signal.SIGKILL),
    "SIGTERM": lambda serving: os.kill(serving.status().runtime.pid, signal.SIGTERM),
    "SIGSTOP": lambda serving: os.kill(serving.status().runtime.pid, signal.SIGSTOP),
    "socket deleted": delete_socket,
}


@pytest.mark.parametrize("hurt", HURTS)
def test_a_hurt_runtime_is_replaced_behind_the_same_address(llama, model, tier, hurt) -> None:
    # covers: spawn_supervision/health-timeout
    async def life() -> None:
        serving = llama(tier=tier)
        async with serving_parts.serving_with(serving, model):
            before, url = serving.status().runtime.pid, serving.gateway.base_url
            assert (await serving_parts.chat(serving))[0] == 200
            HURTS[hurt](serving)
            await serving_parts.until(serving_parts.ready_again(serving, before))
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
            assert (await serving.check_health()).ok
            assert serving.gateway.metrics_text() != before  # it was counted there
            serving._health._probe._token = Secret("x" * 43)
            assert not (await serving.check_health()).ok
            serving._health._probe._token = Secret(serving_parts.TOKEN)
            await serving.gateway.close()
            assert not (await serving.check_health()).ok

    asyncio.run(life())


@pytest.mark.usefixtures("each_event_loop")
def test_a_runtime_that_computes_a_token_counts_as_working(llama, model) -> None:
    async def life() -> None:
        serving = llama(timing=replace(serving_parts.QUICK, health_interval=3600))
        async with serving_parts.serving_with(serving, model):
            assert await serving.computes()

    asyncio.run(life())


def test_a_runtime_that_answers_health_but_computes_nothing_is_replaced(llama, model) -> None:
    async def life() -> None:
        serving = llama(timing=replace(serving_parts.QUICK, unresponsive_after=3600))
        async with serving_parts.serving_with(serving, model):
            before = serving.status().runtime.pid
            real, answers = serving.computes, []

            async def noted() -> bool:
                answers.append(await real() if answers else False)
                return answers[-1]

            serving.computes = noted
            # A single bad answer is no reason yet: health is good, and tokens come.
            await serving_parts.until(lambda: answers[:3] == [False, True, True])
            assert serving.status().runtime.pid == before

            async def never() -> bool:
                return False

            serving.watchdog._timing = serving_parts.QUICK
            serving.computes = never
            await serving_parts.until(lambda: serving._supervisor.state is State.STOPPED)
            serving.computes = real
            await serving_parts.until(serving_parts.ready_again(serving, before))

    asyncio.run(life())


def test_a_runtime_that_hangs_in_the_requests_it_has_is_replaced(llama, model) -> None:
    """It answers health checks and uses no processor, and so never gets idle."""

    async def life() -> None:
        serving = llama()
        async with serving_parts.serving_with(serving, model):
            before = serving.status().runtime.pid
            real, asked = serving.computes, []

            async def never() -> bool:
                asked.append(serving.idle)
                return False

            serving.computes = never
            serving.gateway.context.queue.take()  # by a request that is never answered
            await serving_parts.until(lambda: serving._supervisor.state is State.STOPPED)
            assert False in asked
            serving.computes = real
            await serving_parts.until(serving_parts.ready_again(serving, before))

    asyncio.run(life())


def test_over_its_ceiling_it_is_drained_started_smaller_and_then_refused(llama, model) -> None:
    # covers: spawn_supervision/ram-ceiling
    async def life() -> None:
        serving = llama(context_length=1024)
        async with serving_parts.serving_with(serving, model):
            pid, parallel = serving.status().runtime.pid, serving.size.parallel
            restart, started = serving.restart, []

            async def noted() -> None:
                await restart()
                started.append((serving_parts.ready_again(serving, pid)(), serving.size.parallel))

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
            assert serving.status().lifecycle == "stopped"
            assert serving.status().gave_up == "ram_over_limit"

    asyncio.run(life())


def test_a_model_that_does_not_fit_is_refused_before_the_start(llama, model, monkeypatch) -> None:
    async def life() -> None:
        # The machine's own free memory cannot be made so small.
        monkeypatch.setattr(
            "companion_core.runtime.resources.free_memory.available_memory", lambda: 1000
        )
        serving = llama()
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(serving, model):
                pass
        assert caught.value.reason is Reason.MEMORY_SHORT

    asyncio.run(life())
