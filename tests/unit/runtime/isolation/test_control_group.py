"""The steps into a control group, and back out of it, against a double of the kernel's files.

`tests/integration/test_control_group.py` does the same with a real hierarchy, where no memory
or processor controller may be had; so what these two do there has not been seen.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from companion_core.providers import ResourceLimits
from companion_core.runtime.isolation import ControlGroup, NoControlGroup, control_group
from companion_core.runtime.isolation.probing import probe_ceilings

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]

LIMITS = ResourceLimits(max_ram_bytes=5_000_000, max_vram_bytes=None, max_cpu_percent=50)
MOUNT = Path("/sys/fs/cgroup")
GROUP = MOUNT / "user.slice" / "companion.scope"
OF_CONTROLLERS = {
    "memory": ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events"),
    "cpu": ("cpu.max",),
    "pids": ("pids.max",),
}


class Kernel:
    """Groups as cgroups(7) has them: what may be written where, and what that does."""

    def __init__(self, controllers: str = "cpu io memory pids") -> None:
        self.groups: dict[Path, dict[str, str]] = {}
        self.writes: list[tuple[str, str]] = []
        self.me = str(os.getpid())
        self.broken: str | None = None
        self.others = {
            Path("/proc/self/cgroup"): f"1:cpu:/other\n0::/{GROUP.relative_to(MOUNT)}\n",
            Path("/proc/self/mountinfo"): (
                "40 30 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
                f"41 31 0:38 / {MOUNT} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
            ),
        }
        self._add(GROUP, controllers.split())
        self.groups[GROUP]["cgroup.procs"] = self.me

    def _add(self, group: Path, controllers: list[str]) -> None:
        names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.kill"]
        names += [name for each in controllers for name in OF_CONTROLLERS.get(each, ())]
        self.groups[group] = dict.fromkeys(names, "")
        self.groups[group] |= {
            "cgroup.type": "domain\n",
            "cgroup.controllers": " ".join(controllers),
        }

    def _file(self, file: Path) -> dict[str, str]:
        if file.name not in self.groups.get(file.parent, {}):
            raise FileNotFoundError(errno.ENOENT, "no file", str(file))
        return self.groups[file.parent]

    def read(self, file: Path) -> str:
        return self.others[file] if file in self.others else self._file(file)[file.name]

    def write(self, file: Path, text: str) -> None:
        files = self._file(file)
        self.writes.append((str(file.relative_to(GROUP)), text))
        if self.broken == self.writes[-1][0]:
            raise OSError(errno.EINVAL, "broken")
        if file.name == "cgroup.procs":
            if files["cgroup.subtree_control"]:
                raise OSError(errno.EBUSY, "no internal processes")
            mover = self.me if text == "0" else text
            for each in self.groups.values():
                left = [pid for pid in each["cgroup.procs"].split() if pid != mover]
                each["cgroup.procs"] = " ".join(left)
            files["cgroup.procs"] = f"{files['cgroup.procs']} {mover}".strip()
        elif file.name == "cgroup.subtree_control":
            if files["cgroup.procs"]:
                raise OSError(errno.EBUSY, "no internal processes")
            wanted = set(files[file.name].split())
            for change in text.split():
                if change[1:] not in files["cgroup.controllers"].split():
                    raise OSError(errno.ENOENT, "no such controller")
                wanted = wanted | {change[1:]} if change[0] == "+" else wanted - {change[1:]}
            files[file.name] = " ".join(sorted(wanted))
        elif file.name == "cgroup.kill":
            files["cgroup.procs"] = ""
        else:
            files[file.name] = text

    def make(self, group: Path) -> None:
        if group in self.groups:
            raise FileExistsError(errno.EEXIST, "there", str(group))
        self._add(group, self.groups[group.parent]["cgroup.subtree_control"].split())

    def remove(self, group: Path) -> None:
        if group not in self.groups:
            raise FileNotFoundError(errno.ENOENT, "none", str(group))
        if self.groups[group]["cgroup.procs"] or any(group == each.parent for each in self.groups):
            raise OSError(errno.EBUSY, "not empty")
        del self.groups[group]


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    for name in ("read", "write", "make", "remove"):
        monkeypatch.setattr(control_group, f"_{name}", getattr(made, name))
    monkeypatch.setattr(control_group.os, "access", lambda _file, _mode: True)
    monkeypatch.setattr(control_group.os, "cpu_count", lambda: 4)
    return made


def before(kernel: Kernel) -> bool:
    """Nothing of it is there any more, and this process is where it was."""
    own = kernel.groups[GROUP]
    return list(kernel.groups) == [GROUP] and (
        own["cgroup.procs"],
        own["cgroup.subtree_control"],
    ) == (kernel.me, "")


def test_the_runtime_gets_its_ceilings_and_nothing_is_left_of_them(kernel) -> None:
    group = ControlGroup.make(LIMITS)
    files = kernel.groups[group.path]
    assert (files["memory.max"], files["memory.swap.max"]) == ("5000000", "0")
    assert files["memory.oom.group"] == "1"
    assert files["cpu.max"] == "200000 100000"  # half of four
    assert files["pids.max"] == "4096"
    assert kernel.groups[GROUP / "companion"]["cgroup.procs"] == kernel.me
    assert not group.contains(4711)
    kernel.write(group.path / "cgroup.procs", "4711")
    assert group.contains(4711)
    assert not group.contains(471)
    group.close()
    assert before(kernel)
    assert not group.contains(4711)
    later = ControlGroup.make(LIMITS)
    kernel.write(later.path / "cgroup.procs", "4712")
    group.close()  # once more, late: the later one is not touched
    assert later.contains(4712)
    later.close()
    assert before(kernel)


def test_all_of_the_machine_needs_no_ceiling(kernel) -> None:
    limits = ResourceLimits(max_ram_bytes=1, max_vram_bytes=None, max_cpu_percent=100)
    group = ControlGroup.make(limits)
    assert kernel.groups[group.path]["cpu.max"] == ""
    group.close()
    small = ResourceLimits(max_ram_bytes=1, max_vram_bytes=None, max_cpu_percent=0.01)
    group = ControlGroup.make(small)
    assert kernel.groups[group.path]["cpu.max"] == "1000 100000"  # the kernel takes no less


def test_what_is_not_everywhere_may_be_missing(kernel, monkeypatch) -> None:
    kernel.groups[GROUP]["cgroup.controllers"] = "memory cpu"
    monkeypatch.setitem(OF_CONTROLLERS, "memory", ("memory.max", "memory.oom.group"))
    group = ControlGroup.make(LIMITS)
    assert kernel.groups[group.path]["memory.max"] == "5000000"
    assert "pids.max" not in kernel.groups[group.path]
    group.close()
    assert before(kernel)


@pytest.mark.parametrize(
    "step",
    [
        "companion/cgroup.procs",
        "cgroup.subtree_control",
        "runtime/memory.max",
        "runtime/memory.oom.group",
        "runtime/cpu.max",
    ],
)
def test_a_failed_step_undoes_the_earlier_ones(kernel, step) -> None:
    kernel.broken = step
    with pytest.raises(NoControlGroup, match="EINVAL"):
        ControlGroup.make(LIMITS)
    if step == "cgroup.subtree_control":  # undoing goes through it too
        kernel.groups[GROUP]["cgroup.subtree_control"] = ""
    assert before(kernel)


def test_leaves_of_a_killed_companion_are_no_obstacle(kernel) -> None:
    for name in ("companion", "runtime"):
        kernel.make(GROUP / name)
    ControlGroup.make(LIMITS).close()
    assert before(kernel)


@pytest.mark.parametrize("lived_in", [("runtime",), ("companion",), ("runtime", "companion")])
def test_a_leaf_with_processes_stays_and_another_name_is_taken(kernel, lived_in) -> None:
    for number, name in enumerate(lived_in):
        kernel.make(GROUP / name)
        kernel.groups[GROUP / name]["cgroup.procs"] = f"47{number}"
    group = ControlGroup.make(LIMITS)
    assert group.path == GROUP / ("runtime-2" if "runtime" in lived_in else "runtime")
    assert kernel.groups[group.path]["memory.max"] == "5000000"
    kernel.write(group.path / "cgroup.procs", "4711")
    group.close()
    # Those that were there are left alone, and nothing else is left.
    assert set(kernel.groups) == {GROUP, *(GROUP / name for name in lived_in)}
    for number, name in enumerate(lived_in):
        assert kernel.groups[GROUP / name]["cgroup.procs"] == f"47{number}"


@pytest.mark.parametrize("step", ["companion/cgroup.procs", "runtime-2/memory.max"])
def test_a_failed_step_ends_no_process_in_an_earlier_leaf(kernel, step) -> None:
    kernel.make(GROUP / "runtime")
    kernel.groups[GROUP / "runtime"]["cgroup.procs"] = "4711"
    kernel.broken = step
    with pytest.raises(NoControlGroup, match="EINVAL"):
        ControlGroup.make(LIMITS)
    assert kernel.groups[GROUP / "runtime"]["cgroup.procs"] == "4711"
    assert set(kernel.groups) == {GROUP, GROUP / "runtime"}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda kernel: kernel.groups[GROUP].pop("cgroup.type"), "no control group of its own"),
        (lambda kernel: kernel.groups.clear(), "no control group of its own"),
        (lambda kernel: kernel.groups[GROUP].update({"cgroup.type": "threaded"}), "not delegated"),
        (lambda kernel: kernel.groups[GROUP].update({"cgroup.controllers": "cpu"}), "memory"),
        (lambda kernel: kernel.groups[GROUP].update({"cgroup.controllers": ""}), "memory and cpu"),
        (
            lambda kernel: kernel.groups[GROUP].update({"cgroup.procs": f"{kernel.me}\n1\n"}),
            "other programs",
        ),
        (lambda kernel: kernel.groups[GROUP].update({"cgroup.procs": "0\n"}), "other programs"),
        (
            lambda kernel: kernel.others.update({Path("/proc/self/cgroup"): "2:memory:/x\n"}),
            "version 2",
        ),
        (
            lambda kernel: kernel.others.update({Path("/proc/self/cgroup"): "0::/../x\n"}),
            "version 2",
        ),
        (
            lambda kernel: kernel.others.update(
                {Path("/proc/self/mountinfo"): "41 31 0:38 /part /x rw - cgroup2 cgroup2 rw\n"}
            ),
            "version 2",
        ),
        (lambda kernel: kernel.others.clear() or kernel.groups.clear(), "does not tell"),
    ],
)
def test_a_group_that_is_not_its_own_is_left_alone(kernel, spoil, why) -> None:
    spoil(kernel)
    with pytest.raises(NoControlGroup, match=why):
        ControlGroup.make(LIMITS)
    assert kernel.writes == []
    state = probe_ceilings("linux")
    assert not state.hard
    assert why in state.detail


def test_a_group_that_may_not_be_written_is_not_delegated(kernel, monkeypatch) -> None:
    monkeypatch.setattr(
        control_group.os, "access", lambda file, _mode: file.name != "cgroup.subtree_control"
    )
    with pytest.raises(NoControlGroup, match="not delegated"):
        ControlGroup.make(LIMITS)
    assert kernel.writes == []


def test_probing_changes_nothing(kernel) -> None:
    assert probe_ceilings("linux").hard
    assert kernel.writes == []
    assert probe_ceilings("win32").hard
    assert not probe_ceilings("darwin").hard
