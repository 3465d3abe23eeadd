"""A runtime in a control group of its own, in a real hierarchy of version 2.

The kernel moves, counts and kills here; ceilings of memory and processor time need controllers
that few test machines hand out, so the tests ask for none. Only root may divide a group: these
tests run as root, and the companion in the group runs as the user whom the group was given to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.errors import CompanionError, Reason
from companion_core.runtime.isolation import ControlGroup

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="control groups of Linux"),
]

# A companion's runtime side: waits until it has been put into its group, then lives a life.
LIFE = """
import asyncio, json, os, signal, sys
sys.stdin.readline()
import runtime_parts as parts
from companion_core.decisions.isolation import Tier
from companion_core.runtime.isolation import control_group, probe_ceilings

control_group._NEEDED = control_group._OPTIONAL = ()
control_group._settings = lambda limits: ()
group, how = sys.argv[1], sys.argv[2]

def groups():
    return sorted(name for name in os.listdir(group) if os.path.isdir(f"{group}/{name}"))

def members(leaf):
    return open(f"{group}/{leaf}/cgroup.procs").read().split()

async def life(machine):
    supervisor = machine.supervisor
    spec = machine.spec(*sys.argv[4:], tier=Tier(sys.argv[3]))
    facts = {"probed": probe_ceilings().hard}
    if how == "foreign":
        other = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["/bin/sleep", "60"])
    backend = await supervisor.start(spec)
    if how == "foreign":
        os.kill(other, signal.SIGKILL)
    tree = supervisor.tree()
    facts |= {"hard": backend.ceilings.hard, "why": backend.ceilings.detail, "groups": groups()}
    if backend.ceilings.hard:
        runtime, companion = (
            [name for name in groups() if name.startswith(leaf)][-1]
            for leaf in ("runtime", "companion")
        )
        facts["inside"] = sorted(map(str, tree)) == sorted(members(runtime))
        facts["me"] = str(os.getpid()) in members(companion)
        facts["runtime beside"] = not {str(backend.pid)} & set(members(companion))
    if how == "killed":
        print(json.dumps(facts | {"tree": tree}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        os.kill(backend.pid, signal.SIGKILL)
        await parts.until(lambda: machine.exits)
    await supervisor.stop()
    facts |= {"left": groups(), "alive": [pid for pid in tree if parts.alive(pid)]}
    facts["back"] = str(os.getpid()) in open(f"{group}/cgroup.procs").read().split()
    print(json.dumps(facts), flush=True)

with parts.machine() as machine:
    asyncio.run(life(machine))
"""


@pytest.fixture(params=["root", "ordinary"])
def run_inside(request, tmp_path, require_real):
    """Run a life in a group of its own."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    unified = [row.split()[4] for row in mounts if " - cgroup2 " in row and row.split()[3] == "/"]
    require_real("the whole hierarchy of control groups of version 2", bool(unified))
    require_real("root, who makes control groups", os.geteuid() == 0)
    group = Path(unified[0]) / f"companion-test-{os.getpid()}"
    with contextlib.suppress(OSError):
        group.mkdir()
    require_real("a hierarchy of control groups that root may write", group.is_dir())
    user = parts.ORDINARY_USER if request.param == "ordinary" else 0
    files = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
    for name in files:
        os.chown(group / name, user, user)

    def run(how: str, tier: str, *behaviour: str) -> dict[str, object]:
        program = ["-c", LIFE, str(group), how, tier, *behaviour]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        life = parts.run_as(user, program, tmp_path, **pipes)
        require_real("a Python that an ordinary user can run", life is not None)
        (group / "cgroup.procs").write_text(str(life.pid))
        output, _ = life.communicate(b"go\n", timeout=60)
        facts = json.loads(output)
        facts["code"] = life.returncode
        return facts

    yield run, group
    kill = group / "cgroup.kill"
    kill.write_text("1")
    assert parts.wait_until(lambda: not (group / "cgroup.procs").read_text())
    for leaf in (entry for entry in group.iterdir() if entry.is_dir()):
        assert parts.wait_until(lambda leaf=leaf: not (leaf / "cgroup.procs").read_text())
        leaf.rmdir()
    group.rmdir()


@pytest.mark.parametrize("tier", ["none", "landlock", "bubblewrap"])
@pytest.mark.parametrize("how", ["stop", "crash"])
def test_the_whole_tree_is_in_its_group_and_both_leave_nothing(run_inside, how, tier) -> None:
    run, _ = run_inside
    assert run(how, tier, "offspring") == {
        "probed": True,
        "hard": True,
        "why": "a control group of the runtime's own",
        "groups": ["companion", "runtime"],
        "inside": True,
        "me": True,
        "runtime beside": True,
        "left": [],
        "alive": [],
        "back": True,
        "code": 0,
    }


def test_a_killed_companion_leaves_no_runtime_in_its_group(run_inside) -> None:
    run, group = run_inside
    facts = run("killed", "none", "offspring")
    assert facts["hard"]
    assert facts["code"] == -9
    assert parts.wait_until(lambda: not (group / "runtime").exists())  # its keeper removed it
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in facts["tree"])


@pytest.mark.parametrize("lived_in", ["runtime", "companion"])
def test_a_process_left_in_a_killed_companions_group_costs_no_ceilings(
    run_inside, lived_in
) -> None:
    run, group = run_inside
    (group / lived_in).mkdir()
    with subprocess.Popen(["/bin/sleep", "60"]) as left:
        (group / lived_in / "cgroup.procs").write_text(str(left.pid))
        facts = run("beside", "none", "offspring")
        assert left.poll() is None
        left.kill()
    assert (facts["hard"], facts["inside"], facts["code"]) == (True, True, 0)
    assert facts["groups"] == sorted(["companion", "runtime", f"{lived_in}-2"])
    assert (facts["left"], facts["alive"]) == ([lived_in], [])


def test_beside_another_program_the_ceilings_are_observed(run_inside) -> None:
    run, _ = run_inside
    facts = run("foreign", "none")
    assert (facts["hard"], facts["groups"], facts["left"]) == (False, [], [])
    assert facts["why"] == "other programs run in the same control group"


class CountingGroup:
    """A folder with what a real group tells of a runtime that was ended at its ceiling."""

    def __init__(self, path: Path, kills: int) -> None:
        self.path = path
        path.mkdir()
        for name in ("cgroup.procs", "cgroup.kill"):
            (path / name).write_text("")
        (path / "memory.events").write_text(f"low 0\nhigh 0\nmax 7\noom 3\noom_kill {kills}\n")

    def contains(self, pid: int) -> bool:
        procs = self.path / "cgroup.procs"
        return procs.exists() and procs.read_text() == "0"  # the runtime entered by itself

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    def use(kills: int) -> CountingGroup:
        group = CountingGroup(tmp_path / "group", kills)
        # No test machine delegates the controllers, so the group is a folder.
        monkeypatch.setattr(ControlGroup, "make", lambda _limits: group)
        return group

    return use


@pytest.mark.parametrize(
    ("kills", "reason"), [(0, Reason.RUNTIME_EXITED), (2, Reason.RAM_OVER_LIMIT)]
)
def test_a_runtime_that_the_kernel_ended_at_its_ceiling_is_told_apart(
    counted, kills, reason
) -> None:
    counted(kills)

    async def life(machine) -> None:
        backend = await machine.supervisor.start(machine.spec())
        assert backend.ceilings.hard
        os.kill(backend.pid, signal.SIGKILL)
        await parts.until(lambda: machine.exits)
        ending = machine.supervisor.last_ending
        assert (ending.reason, ending.exit_code) == (reason, -signal.SIGKILL)
        await machine.supervisor.stop()

    with parts.machine() as machine:
        asyncio.run(life(machine))
        assert machine.leftovers() == []


def test_a_runtime_that_did_not_enter_its_group_is_observed(counted) -> None:
    (counted(0).path / "cgroup.procs").unlink()

    async def life(machine) -> None:
        backend = await machine.supervisor.start(machine.spec())
        assert not backend.ceilings.hard
        assert backend.ceilings.detail == "the runtime did not enter its control group"
        await machine.supervisor.stop()

    with parts.machine() as machine:
        asyncio.run(life(machine))


@pytest.mark.parametrize(
    ("kills", "reason"), [(0, Reason.RUNTIME_EXITED), (1, Reason.RAM_OVER_LIMIT)]
)
def test_an_ending_at_the_ceiling_before_readiness_is_told_apart(counted, kills, reason) -> None:
    counted(kills)
    with parts.machine() as machine, pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(machine.spec("exit")))
    assert caught.value.reason is reason
