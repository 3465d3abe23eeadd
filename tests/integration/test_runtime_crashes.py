"""Both real runtimes, hurt at every stage of their life; `docs/endings.md` has the table."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import real_runtimes
import runtime_parts as parts
import serving_parts
from port_thief import received_by

from companion_core.decisions.isolation import Tier
from companion_core.errors import CompanionError, Reason
from companion_core.serving.serving import Serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc"),
]


@pytest.fixture(params=real_runtimes.NAMES)
def name(request, require_real) -> str:
    require_real(
        real_runtimes.missing(request.param) or "", not real_runtimes.missing(request.param)
    )
    return request.param


START_SECONDS = 3600
CYCLES = 50


def patient(plan: Any) -> Any:
    return replace(plan, start_deadline_seconds=START_SECONDS)


async def refused_start(serving: Serving, model: Any, meanwhile: Any = None) -> CompanionError:
    """Start in vain; neither a process of the runtime nor its folder is left."""
    await serving.open()
    tree: list[int] = []
    watching = None if meanwhile is None else asyncio.ensure_future(meanwhile(serving, tree))
    try:
        with pytest.raises(CompanionError) as caught:
            await serving.start(model)
        if watching is not None:
            await watching
        assert not any(map(parts.alive, tree))
        assert serving.status().runtime is None
        assert serving.status().lifecycle == "stopped"
        assert list(serving._paths.run_folder().iterdir()) == []
    finally:
        await serving.stop()
        await serving.gateway.close()
    return caught.value


def hurt_while_starting(number: int) -> Any:
    async def hurt(serving: Serving, tree: list[int]) -> None:
        await serving._current.has_process.wait()
        tree += serving._supervisor.tree()
        os.kill(serving._supervisor.runtime_pid, number)

    return hurt


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_while_it_starts_ends_the_start(name, model, tmp_path, number) -> None:
    async def life() -> None:
        serving = real_runtimes.make_real(name, tmp_path)
        error = await refused_start(serving, model, hurt_while_starting(number))
        assert error.reason is Reason.RUNTIME_EXITED

    asyncio.run(life())


def test_one_that_is_never_ready_is_ended_at_its_deadline(name, model, tmp_path) -> None:
    """The runtime is stopped while it loads: its process is there and never answers."""

    async def stop_it(serving: Serving, tree: list[int]) -> None:
        await hurt_while_starting(signal.SIGSTOP)(serving, tree)
        serving_parts.time_passes(START_SECONDS)

    async def life() -> None:
        serving = real_runtimes.make_real(name, tmp_path, alter=patient)
        error = await refused_start(serving, model, stop_it)
        assert error.reason is Reason.START_TIMEOUT

    asyncio.run(life())


def test_one_that_gives_up_on_its_model_says_why(name, tmp_path) -> None:
    """llama.cpp ends with code 1; Ollama refuses what it was to prepare."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))

    async def life() -> None:
        broken = parts.verified_model(path)
        serving = real_runtimes.make_real(name, tmp_path)
        error = await refused_start(serving, broken)
        broken.close()
        assert error.reason in {Reason.RUNTIME_EXITED, Reason.SPAWN_FAILED}
        assert "the runtime's last lines:\n  " in error.detail
        if name == "llama.cpp":
            assert serving.last_ending is not None
            assert serving.last_ending.exit_code == 1
            assert error.detail.startswith("exit code 1\n")

    asyncio.run(life())


def test_one_whose_port_was_stolen_is_not_taken_for_the_thief(name, model, tmp_path) -> None:
    """No program can in a network of its own: so without one, where the person accepted that."""

    async def life() -> None:
        with socket.socket() as thief:

            def steal(request: Any, plan: Any) -> Any:
                thief.bind((request.channel.host, request.channel.port))
                thief.listen()
                return plan

            serving = real_runtimes.make_real(
                name, tmp_path, tier=Tier.NONE, unsafe_open_backend=True
            )
            spawner = Stolen(serving._providers.chosen.spawn.provider, steal)
            chosen = serving._providers.chosen
            serving._providers = replace(
                serving._providers,
                chosen=replace(chosen, spawn=replace(chosen.spawn, provider=spawner)),
            )
            error = await refused_start(serving, model)
            assert error.reason is Reason.RUNTIME_EXITED
            assert received_by(thief, 5) == b""

    asyncio.run(life())


class Stolen(real_runtimes.Altered):
    """Plans TCP alone, and tells the thief which port the runtime is to get."""

    channels = frozenset({"tcp"})

    def plan(self, request: Any) -> Any:
        return self._alter(request, self._spawner.plan(request))


def pid_of(serving: Serving) -> int:
    return getattr(serving.runtime, "pid", 0)


def ready_again(serving: Serving, before: int) -> bool:
    return pid_of(serving) not in {0, before} and serving.lifecycle().ok


def runner_of(serving: Serving) -> int:
    """Return the process that computes: Ollama's grandchild, else the runtime itself."""
    tree = serving._supervisor.tree()
    return next((pid for pid in tree if "runner" in psutil.Process(pid).cmdline()), pid_of(serving))


def cut_the_line(serving: Serving) -> None:
    """Delete the socket; without one, end the broker that hands out connections."""
    backend = serving._backend
    assert backend is not None
    if backend.channel_name == "unix":
        Path(backend.channel.path).unlink()
        return
    lines = {pid: psutil.Process(pid).cmdline() for pid in serving._supervisor.tree()}
    broker = next(
        pid
        for pid, line in lines.items()
        if any(part.endswith("broker.py") for part in line) and Path(line[0]).name != "bwrap"
    )
    os.kill(broker, signal.SIGKILL)


HURTS = {
    "SIGKILL": lambda serving: os.kill(pid_of(serving), signal.SIGKILL),
    "SIGTERM": lambda serving: os.kill(pid_of(serving), signal.SIGTERM),
    "SIGSTOP": lambda serving: os.kill(pid_of(serving), signal.SIGSTOP),
    "socket deleted": cut_the_line,
}


@pytest.mark.parametrize("hurt", HURTS)
def test_one_that_is_hurt_while_it_is_ready_serves_again(name, model, tmp_path, hurt) -> None:
    async def life() -> None:
        serving = real_runtimes.make_real(name, tmp_path)
        async with serving_parts.serving_with(serving, model):
            before, tree = pid_of(serving), serving._supervisor.tree()
            url = serving.gateway.base_url
            HURTS[hurt](serving)
            await serving_parts.until(lambda: ready_again(serving, before))
            assert (await serving_parts.chat(serving))[0] == 200
            assert serving.gateway.base_url == url
            assert serving.watchdog.gave_up is None
            await serving_parts.until(lambda: not any(map(parts.alive, tree)))

    asyncio.run(life())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_runner_below_the_runtime_is_replaced_by_whoever_notices_first(
    model, tmp_path, number, require_real
) -> None:
    """Ollama starts another one itself, or a token that does not come ends the whole runtime."""
    require_real(real_runtimes.missing("Ollama") or "", not real_runtimes.missing("Ollama"))

    async def life() -> None:
        serving = real_runtimes.make_real("Ollama", tmp_path)
        async with serving_parts.serving_with(serving, model):
            assert (await serving_parts.chat(serving))[0] == 200
            runner = runner_of(serving)
            assert runner != pid_of(serving)
            os.kill(runner, number)
            await serving_parts.until(lambda: not parts.alive(runner), seconds=100)
            await serving_parts.until(lambda: serving.lifecycle().ok)
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


def test_one_that_is_killed_while_it_serves_is_replaced_and_its_client_told(
    name, model, tmp_path
) -> None:
    async def life() -> None:
        serving = real_runtimes.make_real(
            name, tmp_path, timing=replace(serving_parts.QUICK, liveness_interval=3600)
        )
        async with serving_parts.serving_with(serving, model):
            assert (await serving_parts.chat(serving))[0] == 200
            before, tree = pid_of(serving), serving._supervisor.tree()
            # It stops first, so that the answer is not over before the signal is there.
            os.kill(runner_of(serving), signal.SIGSTOP)
            asking = asyncio.ensure_future(serving_parts.chat(serving, stream=True))
            await serving_parts.until(lambda: serving.gateway.snapshot().in_flight == 1)
            os.kill(before, signal.SIGKILL)
            status, answer = await asking
            assert (status, answer["error"]["code"]) == (502, Reason.UPSTREAM_FAILED)
            assert serving.gateway.snapshot().in_flight == 0
            await serving_parts.until(lambda: ready_again(serving, before))
            assert (await serving_parts.chat(serving))[0] == 200
            await serving_parts.until(lambda: not any(map(parts.alive, tree)))

    asyncio.run(life())


def test_over_its_ceiling_it_is_drained_started_smaller_and_then_refused(
    name, model, tmp_path
) -> None:
    async def life() -> None:
        serving = real_runtimes.make_real(name, tmp_path)
        async with serving_parts.serving_with(serving, model):
            before, size = pid_of(serving), serving.size
            tight = replace(serving_parts.LIMITS, max_ram_bytes=1024 * 1024)
            serving._monitor._limits = tight
            await serving_parts.until(lambda: not serving.resources().ok)
            assert (await serving_parts.chat(serving))[0] == 503
            await serving_parts.until(lambda: serving.size != size)
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is Reason.RAM_OVER_LIMIT
            assert serving.status().lifecycle == "stopped"
            assert not parts.alive(before)

    asyncio.run(life())


@pytest.mark.timeout(400)
def test_fifty_cycles_leave_no_process_descriptor_socket_or_file(name, model, tmp_path) -> None:
    me = psutil.Process()

    def files() -> set[Path]:
        return {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}

    async def life() -> None:
        serving = real_runtimes.make_real(name, tmp_path)
        await serving.open()

        async def cycle(count: int) -> set[int]:
            seen: set[int] = set()
            for _ in range(count):
                await serving.start(model)
                await serving._supervisor.settle()  # the store is recorded by now
                seen.update(serving._supervisor.tree())
                await serving.stop()
            return seen

        try:
            await cycle(2)  # whatever is made only once
            gc.collect()  # descriptors of earlier tests must not be closed in between
            opened, sockets, there = me.num_fds(), len(me.net_connections("all")), files()
            seen = await cycle(CYCLES)
            assert len(seen) >= CYCLES
            assert not any(map(parts.alive, seen))
            assert files() == there
            # The last cycle's close a moment after its end; a leak would leave one for each cycle.
            await parts.until(lambda: me.num_fds() <= opened)
            await parts.until(lambda: len(me.net_connections("all")) <= sockets)
        finally:
            await serving.stop()
            await serving.gateway.close()

    asyncio.run(life())
    zombies = [child for child in me.children() if child.status() == psutil.STATUS_ZOMBIE]
    assert zombies == []
