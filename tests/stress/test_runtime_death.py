"""The whole tree dies: with its parent killed, against its will, and fifty times over (I-08)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.runtime.process.reclaim import reclaim

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="counts through /proc"),
]


PARTS_FILE = Path(parts.__file__)

# A companion to be killed: it starts a runtime, says so, and waits.
COMPANION = """
import asyncio, runpy, sys
from pathlib import Path
from companion_core.decisions.isolation import Tier
from companion_core.runtime.isolation import confinement
confinement.OWN_NAMESPACES = {namespaces}
sys.argv = ["runtime_parts"]
import importlib.util
spec = importlib.util.spec_from_file_location("runtime_parts", {parts!r})
parts = importlib.util.module_from_spec(spec)
sys.modules["runtime_parts"] = parts
spec.loader.exec_module(parts)

async def live():
    machine = parts.Machine(Path({folder!r}))
    spec = machine.spec({behaviour}, tier=Tier({tier!r}))
    task = asyncio.ensure_future(machine.supervisor.start(spec))
    if {early}:
        while machine.supervisor.runtime_pid is None:
            await asyncio.sleep(0.001)
    else:
        await task
    keeper = machine.supervisor._run.process._keeper.pid
    print(keeper, *machine.supervisor.tree(), flush=True)
    await asyncio.sleep(3600)

asyncio.run(live())
"""


@pytest.mark.parametrize("tier", [Tier.NONE, Tier.LANDLOCK, Tier.BUBBLEWRAP])
@pytest.mark.parametrize("early", [False, True], ids=["serving", "starting"])
def test_a_killed_companion_takes_the_whole_tree_with_it(early, tier, require_tier) -> None:
    # covers: spawn_supervision/parent-death
    require_tier(tier)
    with tempfile.TemporaryDirectory(prefix="cc-") as folder:
        behaviour = "'hang'" if early else "'stubborn', 'offspring'"
        source = COMPANION.format(
            parts=str(PARTS_FILE),
            folder=folder,
            behaviour=behaviour,
            early=early,
            tier=tier.value,
            namespaces=True,
        )
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as companion:
            pids = [int(word) for word in companion.stdout.readline().split()]
            seen = [parts.alive(pid) for pid in pids]
            companion.send_signal(signal.SIGKILL)
        around = 2 if tier is Tier.BUBBLEWRAP else 0  # bubblewrap and its first process
        assert seen == [True] * ((2 if early else 3) + around)
        assert parts.within(lambda: not any(map(parts.alive, pids)), seconds=2)


def running(folder: str) -> list[int]:
    """Living processes of the test runtime in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = str(Path(folder, "runtime")) in process.cmdline()
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.parametrize(("namespaces", "survivors"), [(False, 1), (True, 0)])
def test_survivors_of_a_killed_companion_and_keeper_are_reclaimed(namespaces, survivors) -> None:
    with tempfile.TemporaryDirectory(prefix="cc-") as folder:
        source = COMPANION.format(
            parts=str(PARTS_FILE),
            folder=folder,
            behaviour="'stubborn', 'offspring'",
            early=False,
            tier="none",
            namespaces=namespaces,
        )
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as companion:
            keeper = int(companion.stdout.readline().split()[0])
            companion.send_signal(
                signal.SIGSTOP
            )  # or the keeper would notice, and end the tree itself
            stopped = psutil.Process(companion.pid)
            assert parts.wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED)
            os.kill(keeper, signal.SIGKILL)
            companion.send_signal(signal.SIGKILL)
        # The runtime dies with its keeper. Its child has a session of its own and lives, unless
        # both are in a process namespace, which ends as a whole.
        assert parts.wait_until(lambda: len(running(folder)) == survivors)
        run = Path(folder, "run")
        assert len(list(run.iterdir())) == 1
        assert reclaim(Path(folder, "runtime.json"), run, LiveEgress()) == survivors
        assert running(folder) == []
        assert list(run.iterdir()) == []


def test_a_runtime_that_ignores_sigterm_is_killed_with_its_offspring(machine) -> None:
    # covers: spawn_supervision/kill-escalation
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec("stubborn", "offspring"))
        tree = machine.supervisor.tree()
        assert backend.pid in tree
        assert len(tree) == 2
        await machine.supervisor.stop(terminate_after=0.1)
        assert not any(map(parts.alive, tree))

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_tree_whose_keeper_is_killed_or_stopped_dies_all_the_same(machine) -> None:
    async def life(number: int) -> None:
        await machine.supervisor.start(machine.spec())
        tree = machine.supervisor.tree()
        os.kill(machine.supervisor._run.process._keeper.pid, number)
        await machine.supervisor.stop(terminate_after=0.1)
        assert parts.wait_until(lambda: not any(map(parts.alive, tree)))

    asyncio.run(life(signal.SIGKILL))
    asyncio.run(life(signal.SIGSTOP))
    assert machine.leftovers() == []


def test_a_stopped_runtime_is_killed(machine) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        os.kill(backend.pid, signal.SIGSTOP)
        await machine.supervisor.stop(terminate_after=0.1)
        assert not parts.alive(backend.pid)

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("tier", "channels", "count"),
    [
        (Tier.NONE, {"unix"}, 50),
        (Tier.NONE, {"tcp"}, 10),
        (Tier.LANDLOCK, {"unix"}, 10),
        (Tier.BUBBLEWRAP, {"unix"}, 10),
        (Tier.BUBBLEWRAP, {"tcp"}, 50),
    ],
)
def test_many_cycles_leave_no_process_descriptor_socket_or_file(
    machine, tier, channels, count, require_tier
) -> None:
    require_tier(tier)
    me = psutil.Process()
    spawner = parts.FakeSpawner(channels=frozenset(channels))

    async def cycle(count: int) -> None:
        for _ in range(count):
            await machine.supervisor.start(machine.spec(spawner=spawner, tier=tier))
            machine.supervisor.report_health(ok=True)
            await machine.supervisor.stop()

    async def life() -> None:
        await cycle(2)  # whatever is made only once
        gc.collect()  # descriptors of earlier tests must not be closed in between
        before = me.num_fds()
        await cycle(count)
        await parts.until(lambda: me.num_fds() <= before)

    asyncio.run(life())
    assert machine.leftovers() == []
    assert not (machine.folder / "runtime.json").exists()
    zombies = [child for child in me.children() if child.status() == psutil.STATUS_ZOMBIE]
    assert zombies == []
