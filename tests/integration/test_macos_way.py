"""How macOS starts a runtime, run here: its branches, with real processes below.

The platform's name is changed, here and in the keeper, so that process groups, psutil and the
profile are used instead of what only Linux has. A program in the place of sandbox-exec keeps
the profile and confines nothing: that profile has not been run on macOS yet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.isolation import probe_ceilings, probe_isolation, sandbox_exec
from companion_core.runtime.process import launcher

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="shows macOS what Linux has"),
]

KEEPER = """
import os, runpy, sys
sys.platform = "darwin"
sys.path = [path for path in sys.path if path]
runpy.run_path({keeper!r}, run_name="__main__")
"""
SANDBOX_EXEC = """#!/bin/sh
[ "$1" = -p ] || exit 64
printf %s "$2" > {profile}
shift 2
unset PWD OLDPWD _
exec "$@"
"""


@pytest.fixture
def machine(monkeypatch):
    with parts.machine() as made:
        keeper = made.folder / "keeper.py"
        keeper.write_text(KEEPER.format(keeper=str(launcher._KEEPER)))
        program = made.folder / "sandbox-exec"
        program.write_text(SANDBOX_EXEC.format(profile=made.folder / "profile.sb"))
        program.chmod(0o700)
        # The keeper runs by path in a process of its own, which has to take the other name too.
        monkeypatch.setattr(launcher, "_KEEPER", keeper)
        monkeypatch.setattr(sandbox_exec, "PROGRAM", str(program))
        monkeypatch.setattr(sys, "platform", "darwin")
        yield made


CHANNELS = [frozenset({"unix"}), frozenset({"tcp"})]


@pytest.mark.parametrize("channels", CHANNELS, ids=["unix", "tcp"])
@pytest.mark.parametrize("tier", [Tier.NONE, Tier.SANDBOX_EXEC])
def test_a_runtime_starts_is_read_back_and_leaves_nothing(machine, tier, channels) -> None:
    async def life() -> None:
        spawner = parts.FakeSpawner(channels=channels)
        backend = await machine.supervisor.start(machine.spec(spawner=spawner, tier=tier))
        assert os.getpgid(backend.pid) == backend.pid  # its tree is its process group
        assert (await machine.supervisor.check_runtime()).ok
        assert not backend.ceilings.hard
        seen = Path(backend.channel.path).parent if channels == CHANNELS[0] else None
        tree = machine.supervisor.tree()
        assert backend.pid in tree
        if tier is Tier.SANDBOX_EXEC:
            profile = (machine.folder / "profile.sb").read_text()
            assert profile.startswith("(version 1)\n(deny default)\n")
            place = f'(subpath "{seen}")' if seen else f'"localhost:{backend.channel.port}"'
            assert place in profile
        await machine.supervisor.stop()
        assert not any(map(parts.alive, tree))

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_wider_listener_that_opens_later_is_found(machine) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(machine.spec(tier=Tier.SANDBOX_EXEC))
        supervisor.report_health(ok=True)
        before = listeners(supervisor.tree())
        os.kill(backend.pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(supervisor.tree()) != before)
        assert (await supervisor.check_runtime()).reason is Reason.RUNTIME_LISTENS_WIDE
        await supervisor.stop()

    asyncio.run(life())
    assert machine.exits == 1
    assert machine.leftovers() == []


@pytest.mark.parametrize("behaviour", ["exit", "leak", "wide"])
def test_a_runtime_that_departs_from_its_plan_is_ended(machine, behaviour) -> None:
    async def life() -> Reason:
        try:
            await machine.supervisor.start(machine.spec(behaviour, tier=Tier.SANDBOX_EXEC))
        except CompanionError as error:
            return error.reason
        # A descendant that has just executed another program is found at the next read-back.
        verdict = await machine.supervisor.check_runtime()
        await machine.supervisor.stop()
        return verdict.reason

    assert (
        asyncio.run(life())
        is {
            "exit": Reason.RUNTIME_EXITED,
            "leak": Reason.RUNTIME_ENVIRONMENT,
            "wide": Reason.RUNTIME_LISTENS_WIDE,
        }[behaviour]
    )
    assert machine.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_signal_or_code_of_an_ending_is_told(machine, number) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec(tier=Tier.SANDBOX_EXEC))
        process = machine.supervisor._run.process
        os.kill(backend.pid, number)
        await parts.until(lambda: machine.exits)
        assert process.exit_code == -number
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_the_tier_is_probed_by_running_a_program_in_it(machine) -> None:
    (state,) = probe_isolation(LiveEgress(), "darwin")
    assert (state.tier, state.works) == (Tier.SANDBOX_EXEC, True)
    Path(sandbox_exec.PROGRAM).unlink()
    (state,) = probe_isolation(LiveEgress(), "darwin")
    assert not state.works
    assert not probe_ceilings("darwin").hard
