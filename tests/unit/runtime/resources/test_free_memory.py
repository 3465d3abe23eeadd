from __future__ import annotations

import pytest

from companion_core.runtime.resources import free_memory
from companion_core.runtime.resources.free_memory import available_memory
from companion_core.system.memory import MachineMemory

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(
        free_memory, "machine_memory", lambda: MachineMemory(total=9000, available=1000)
    )


def cgroup(folder, limit: str, used: str, stat: str):
    for name, text in (("max", limit), ("current", used), ("stat", stat)):
        (folder / f"memory.{name}").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "stat", "expected"),
    [
        ("600\n", "200\n", "anon 1\ninactive_file 50\n", 450),
        ("600\n", "700\n", "anon 1\n", 0),
        ("5000\n", "1\n", "anon 1\n", 1000),
        ("max\n", "1\n", "anon 1\n", 1000),
        ("600\n", "nonsense\n", "anon 1\n", 1000),
        ("600\n", "200\n", "malformed line here\n", 1000),
    ],
)
def test_the_containers_limit_counts_where_it_is_less(tmp_path, limit, used, stat, expected):
    assert available_memory(cgroup(tmp_path, limit, used, stat)) == expected


def test_without_a_cgroup_it_is_the_machines(tmp_path) -> None:
    assert available_memory(tmp_path / "none") == 1000
