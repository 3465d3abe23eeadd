"""A confined runtime starts, serves, is read back and ends as an unconfined one does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.backend_channel import BrokeredChannel
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.providers import TcpChannel
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.isolation import SandboxPolicy
from companion_core.runtime.process.keeper_protocol import LockPolicy

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]


TCP = frozenset({"tcp"})


@pytest.fixture(params=[Tier.BUBBLEWRAP, Tier.LANDLOCK])
def tier(request, require_tier):
    require_tier(request.param)
    return request.param


@pytest.fixture
def bubblewrap(require_tier):
    require_tier(Tier.BUBBLEWRAP)
    return Tier.BUBBLEWRAP


def keyless(plan, _request):
    return replace(plan, backend_key_env=None)


@pytest.mark.parametrize("channels", [frozenset({"unix"}), TCP], ids=["unix", "tcp"])
def test_a_runtime_starts_is_read_back_and_leaves_nothing(machine, tier, channels) -> None:
    async def life() -> None:
        spawner = parts.FakeSpawner(channels=channels)
        backend = await machine.supervisor.start(machine.spec(spawner=spawner, tier=tier))
        assert str(machine.program) in psutil.Process(backend.pid).cmdline()
        assert machine.supervisor.runtime_pid == backend.pid
        assert (await machine.supervisor.check_runtime()).ok
        status, _ = parts.kernel_facts(backend.pid)
        assert status["NoNewPrivs"] == "1"
        tree = machine.supervisor.tree()
        assert backend.pid in tree
        await machine.supervisor.stop()
        assert not any(map(parts.alive, tree))
        assert machine.supervisor._run is None

    asyncio.run(life())
    assert machine.leftovers() == []
    assert machine.exits == 0


def test_a_wider_listener_inside_the_namespace_is_found_and_ended(machine, tier) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        spawner = parts.FakeSpawner(channels=TCP if tier is Tier.BUBBLEWRAP else {"unix"})
        backend = await supervisor.start(machine.spec(spawner=spawner, tier=tier))
        supervisor.report_health(ok=True)
        before = listeners(supervisor.tree())
        os.kill(backend.pid, signal.SIGUSR1)
        if tier is Tier.LANDLOCK:  # the runtime cannot even make such a socket there, and exits
            await parts.until(lambda: machine.exits)
        else:
            await parts.until(lambda: listeners(supervisor.tree()) != before)
            assert (await supervisor.check_runtime()).reason is Reason.RUNTIME_LISTENS_WIDE
        await supervisor.stop()

    asyncio.run(life())
    assert machine.exits == 1
    assert machine.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_ending_is_known_through_the_namespace(machine, tier, number) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec(tier=tier))
        process = machine.supervisor._run.process
        os.kill(backend.pid, number)
        await parts.until(process.exited.is_set)
        assert process.exit_code == -number
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_an_early_exit_is_told_with_its_code(machine, tier) -> None:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(machine.spec("exit", tier=tier)))
    assert caught.value.reason is Reason.RUNTIME_EXITED
    assert "started" in machine.supervisor.last_lines
    assert machine.leftovers() == []


def test_a_process_that_cannot_lock_itself_in_starts_nothing(
    machine, require_tier, monkeypatch
) -> None:
    require_tier(Tier.LANDLOCK)
    # No plan yields a policy that the kernel refuses, so the policy itself is replaced.
    unreadable = LockPolicy(
        read=("\0",), write=(), devices=(), port=None, calls=b"", calls_here=b""
    )
    monkeypatch.setattr(SandboxPolicy, "lock_policy", lambda _policy, *_, **__: unreadable)
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(machine.spec(tier=Tier.LANDLOCK)))
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert machine.supervisor.last_lines == ()
    assert machine.leftovers() == []


def test_a_runtime_without_a_key_is_reached_through_its_namespace_alone(
    machine, bubblewrap
) -> None:
    class Collector(asyncio.Protocol):
        def __init__(self) -> None:
            self.ended = asyncio.get_running_loop().create_future()
            self.data = b""

        def connection_made(self, transport) -> None:
            transport.write(b"GET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")

        def data_received(self, data: bytes) -> None:
            self.data += data

        def connection_lost(self, _error) -> None:
            self.ended.set_result(None)

    async def life() -> None:
        spawner = parts.FakeSpawner(alter=keyless, channels=TCP)
        backend = await machine.supervisor.start(machine.spec(spawner=spawner, tier=bubblewrap))
        channel = backend.channel
        assert isinstance(channel, BrokeredChannel)
        assert (backend.channel_name, backend.key) == ("namespace", None)
        network = Path(f"/proc/{backend.pid}/ns/net")
        assert not network.samefile("/proc/self/ns/net")  # noqa: ASYNC240 - no disk
        egress = LiveEgress()
        answers = await asyncio.gather(
            *(egress.connect_backend(Collector, channel) for _ in range(8))
        )
        await asyncio.gather(*(answer.ended for answer in answers))
        assert all(b'"status":"success"' in answer.data for answer in answers)
        # No program listens on the same port outside.
        outside = TcpChannel(host="127.0.0.1", port=channel.listener.port)
        with pytest.raises(OSError, match=r".*"):
            await egress.connect_backend(Collector, outside)
        # A connection that was asked for and given up does not shift the later answers.
        given_up = asyncio.ensure_future(channel.connect())
        await asyncio.sleep(0)
        given_up.cancel()
        (await channel.connect()).close()
        os.kill(backend.pid, signal.SIGKILL)
        await parts.until(lambda: machine.exits)
        with pytest.raises(OSError, match=r".*"):
            await channel.connect()
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []
