"""One thread for each core: hardware threads of one core count once."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from companion_core.system import cores
from companion_core.system.cores import physical_cores

pytestmark = pytest.mark.unit


def machine(folder, siblings: dict[int, str]) -> None:
    for number, text in siblings.items():
        place = folder / f"cpu{number}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(text)


def test_hardware_threads_of_one_core_count_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    machine(tmp_path, {0: "0,2\n", 1: "1,3\n", 2: "0,2\n", 3: "1,3\n"})
    assert physical_cores(tmp_path) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2}, raising=False)
    assert physical_cores(tmp_path) == 1  # no other core may be used


def test_two_plain_cores_are_both_used_and_so_is_what_the_system_does_not_describe(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    assert physical_cores(tmp_path) == 2
    machine(tmp_path, {0: "0\n", 1: "1\n"})
    assert physical_cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("0-3\n", 2),  # four hardware threads of two fast cores; 4 and 5 are slow
        ("0,2,4-4\n", 3),
        ("8-9\n", 4),  # this process may use none of the fast ones
        ("\n", 4),
        ("0-x\n", 4),
    ],
)
def test_of_two_kinds_of_cores_the_fast_ones_count(monkeypatch, tmp_path, listed, expected) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)), raising=False)
    machine(tmp_path, {0: "0-1\n", 1: "0-1\n", 2: "2-3\n", 3: "2-3\n", 4: "4\n", 5: "5\n"})
    fast = tmp_path / "cpus"
    fast.write_text(listed)
    assert physical_cores(tmp_path, fast) == expected


@pytest.mark.parametrize(("told", "expected"), [((0, 4), 4), ((-1, 0), 6)])
def test_a_mac_counts_its_performance_cores(monkeypatch, told, expected) -> None:
    failed, count = told

    def answer(name, place, *_rest) -> int:
        assert name == b"hw.perflevel0.physicalcpu"
        place._obj.value = count
        return failed

    monkeypatch.setattr(cores.sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda _name: SimpleNamespace(sysctlbyname=answer))
    counts = SimpleNamespace(cpu_count=lambda logical: None if logical else 6)
    monkeypatch.setitem(sys.modules, "psutil", counts)
    assert physical_cores() == expected


def test_elsewhere_the_system_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(cores.sys, "platform", "win32")
    counts = SimpleNamespace(cpu_count=lambda logical: None if logical else 6)
    monkeypatch.setitem(sys.modules, "psutil", counts)
    assert physical_cores() == 6
