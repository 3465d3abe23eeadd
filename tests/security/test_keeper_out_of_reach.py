"""Attacker: a runtime that was taken over, and wants to outlive the companion (I-08).

Where the system grants namespaces they hold its tree; where it grants none, the keeper has to be
faster than what forks and ends in turn, and nothing is said to have ended before it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.runtime.isolation import confinement
from companion_core.runtime.process.proc_files import first_of_namespace

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="keepers and namespaces of Linux"),
]

CHAINS = 10
# Each process makes the next and ends: a number that was just read is nobody's any more. Each
# leaves a sign of life in the runtime's own folder, and ten chains end by themselves in the end.
FORKERS = """
    end = time.monotonic() + 30
    for number in range(10):
        if os.fork() == 0:
            try:
                os.setsid()
            except OSError:
                pass
            sign = os.open(f"sign-{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            while time.monotonic() < end:
                os.write(sign, b".")
                if os.fork():
                    os._exit(0)
            os._exit(0)
"""
STAYS = """
    if os.fork() == 0:
        try:
            os.setsid()
        except OSError:
            pass
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    os.wait()
"""


@pytest.fixture(params=[Tier.BUBBLEWRAP, Tier.LANDLOCK, Tier.NONE])
def tier(request: pytest.FixtureRequest, require_tier: Callable[[Tier], None]) -> Any:
    require_tier(request.param)
    return request.param


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system grants the keeper none."""
    monkeypatch.setattr(confinement, "OWN_NAMESPACES", False)


def does(machine: Any, code: str) -> None:
    """Have the runtime do something before it serves."""
    text, start = machine.program.read_text(), '    print("started"'
    assert start in text
    machine.program.write_text(text.replace(start, code + start, 1))


def keeper_of(machine: Any) -> int:
    return int(json.loads((machine.folder / "runtime.json").read_bytes())["processes"][0][0])


def test_with_the_keeper_everything_ends(machine: Any, tier: Tier) -> None:
    does(machine, STAYS)

    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec(tier=tier))
        assert len(machine.processes()) >= 2
        assert first_of_namespace(backend.pid) not in {0, backend.pid}
        os.kill(keeper_of(machine), signal.SIGKILL)
        await machine.supervisor.stop()
        # Not "soon": who says that it has stopped has the kernel's word that nothing is left.
        assert machine.processes() == []

    asyncio.run(life())


def test_a_keeper_that_was_stopped_ends_its_tree_all_the_same(machine: Any, tier: Tier) -> None:
    does(machine, STAYS)

    async def life() -> None:
        await machine.supervisor.start(machine.spec(tier=tier))
        os.kill(keeper_of(machine), signal.SIGSTOP)
        await machine.supervisor.stop(terminate_after=0, kill_after=0.5)
        assert machine.processes() == []

    asyncio.run(life())


def test_nothing_that_forks_and_ends_is_left(machine: Any, tier: Tier) -> None:
    does(machine, FORKERS)
    stop_and_see_nothing(machine, tier)


@pytest.mark.usefixtures("no_namespaces")
@pytest.mark.parametrize("tier", [Tier.LANDLOCK, Tier.NONE], indirect=True)
def test_nothing_that_forks_and_ends_is_left_without_namespaces(machine: Any, tier: Tier) -> None:
    does(machine, FORKERS)
    stop_and_see_nothing(machine, tier)


def stop_and_see_nothing(machine: Any, tier: Tier) -> None:
    signs: list[int] = []  # kept open: the folder goes when the start ends

    async def life() -> None:
        starting = asyncio.ensure_future(machine.supervisor.start(machine.spec(tier=tier)))
        await parts.until(lambda: len(list((machine.folder / "run").glob("*/sign-*"))) == CHAINS)
        await asyncio.sleep(0.3)
        signs.extend(
            os.open(path, os.O_RDONLY) for path in (machine.folder / "run").glob("*/sign-*")
        )
        starting.cancel()
        await asyncio.wait({starting})
        await machine.supervisor.stop(terminate_after=0, kill_after=10)

    asyncio.run(life())
    before = [os.fstat(sign).st_size for sign in signs]
    time.sleep(0.5)
    after = [os.fstat(sign).st_size for sign in signs]
    for sign in signs:
        os.close(sign)
    assert min(before) > 1
    assert after == before


@pytest.mark.parametrize("tier", [Tier.BUBBLEWRAP, Tier.LANDLOCK], indirect=True)
def test_root_in_a_sandbox_has_no_rights_of_root(machine: Any, tier: Tier) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec(tier=tier))
        facts, _ = parts.kernel_facts(backend.pid)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[name], 16) == 0, name
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        inside, outside = Path(f"/proc/{backend.pid}/ns"), Path("/proc/self/ns")
        for kind in ("pid", "ipc", "uts", "net"):
            assert (inside / kind).stat().st_ino != (outside / kind).stat().st_ino, kind
        assert psutil.Process(backend.pid).uids().real == os.getuid()
        await machine.supervisor.stop()

    asyncio.run(life())


@pytest.mark.usefixtures("no_namespaces")
@pytest.mark.parametrize("tier", [Tier.LANDLOCK], indirect=True)
def test_without_namespaces_nobody_leaves_the_group_that_one_signal_ends(
    machine: Any, tier: Tier
) -> None:
    left = "    os.setsid()\n"
    does(machine, f"    try:\n    {left}    except PermissionError:\n        print('held')\n")

    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec(tier=tier))
        assert os.getpgid(backend.pid) == backend.pid
        assert first_of_namespace(backend.pid) == 0
        assert "held" in machine.supervisor.last_lines
        await machine.supervisor.stop()

    asyncio.run(life())
