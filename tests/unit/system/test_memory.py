from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from companion_core.system.memory import MachineMemory, machine_memory

pytestmark = pytest.mark.unit

MEMINFO = """MemTotal:       24680000 kB
MemFree:         1000000 kB
MemAvailable:   12340000 kB
HugePages_Total:       0
"""


@pytest.fixture(autouse=True)
def psutil(monkeypatch):
    found = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=2000, available=1000))
    monkeypatch.setitem(sys.modules, "psutil", found)


def test_linux_tells_it_itself(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    file = tmp_path / "meminfo"
    file.write_text(MEMINFO)
    assert machine_memory(file) == MachineMemory(24680000 * 1024, 12340000 * 1024)


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", MEMINFO.replace("12340000", "some"), "x"])
def test_what_it_does_not_tell_is_found_as_elsewhere(monkeypatch, tmp_path, text) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    file = tmp_path / "meminfo"
    assert machine_memory(file) == MachineMemory(2000, 1000)
    file.write_text(text)
    assert machine_memory(file) == MachineMemory(2000, 1000)
    file.write_text(MEMINFO)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine_memory(file) == MachineMemory(2000, 1000)
