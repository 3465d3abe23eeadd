from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from companion_core.providers import ProbeFailed, ProbeTarget
from companion_core.runtime.resources import probe as probe_module
from companion_core.runtime.resources.probe import ProcessProbe, companion_probe

pytestmark = pytest.mark.unit

MIB = 2**20


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores whose processes the test describes."""
    processes: dict[int, probe_module._Reading] = {}
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(probe_module, "_read_linux", lambda pid, _files: processes.get(pid))
    monkeypatch.setattr(probe_module, "_read_elsewhere", processes.get)
    return processes


def reading(start: float = 1, cpu: float = 0, ram: int = 0) -> probe_module._Reading:
    return probe_module._Reading(start=start, cpu_seconds=cpu, ram_bytes=ram)


def make_probe(clock: FakeClock) -> ProcessProbe:
    return ProcessProbe(clock, clock.sleep, lambda: 0)


def test_the_tree_is_summed_and_cpu_is_of_the_whole_machine(machine) -> None:
    # covers: resource_probe/children, resource_probe/cpu-over-100, resource_probe/linux-cpu
    clock = FakeClock()
    probe = make_probe(clock)
    machine |= {1: reading(cpu=10, ram=MIB), 2: reading(cpu=5, ram=3 * MIB)}
    probe.observe(ProbeTarget(pids=(1, 2)))
    clock.now += 2
    machine |= {1: reading(cpu=12, ram=MIB), 2: reading(cpu=7, ram=3 * MIB)}
    observation = probe.observe(ProbeTarget(pids=(1, 2)))
    assert observation.ram_bytes == 4 * MIB
    assert observation.cpu_percent == pytest.approx(50)  # 4 s used, 2 s long, 4 cores


def test_cpu_is_of_the_interval_not_of_the_lifetime(machine) -> None:
    # covers: resource_probe/ps-pcpu-meaning
    clock = FakeClock()
    probe = make_probe(clock)
    machine[1] = reading(cpu=10_000)
    assert probe.observe(ProbeTarget(pids=(1,))).cpu_percent == 0
    clock.now += 1
    assert probe.observe(ProbeTarget(pids=(1,))).cpu_percent == 0


def test_a_reused_number_is_another_process(machine) -> None:
    # covers: resource_probe/pid-reuse
    clock = FakeClock()
    probe = make_probe(clock)
    machine[1] = reading(start=1, cpu=50)
    probe.observe(ProbeTarget(pids=(1,)))
    clock.now += 1
    machine[1] = reading(start=2, cpu=1)
    assert probe.observe(ProbeTarget(pids=(1,))).cpu_percent == pytest.approx(25)


def test_a_process_that_came_meanwhile_counts_whole(machine) -> None:
    clock = FakeClock()
    probe = make_probe(clock)
    machine[1] = reading()
    probe.observe(ProbeTarget(pids=(1,)))
    clock.now += 1
    machine[2] = reading(cpu=2)
    assert probe.observe(ProbeTarget(pids=(1, 2))).cpu_percent == pytest.approx(50)


def test_the_share_never_leaves_its_range(machine) -> None:
    clock = FakeClock()
    probe = make_probe(clock)
    machine[1] = reading()
    probe.observe(ProbeTarget(pids=(1,)))
    clock.now += 1
    machine[1] = reading(cpu=999)
    assert probe.observe(ProbeTarget(pids=(1,))).cpu_percent == 100


def test_no_process_is_no_observation(machine) -> None:
    probe = make_probe(FakeClock())
    for pids in ((), (7,)):
        with pytest.raises(ProbeFailed):
            probe.observe(ProbeTarget(pids=pids))


def test_a_clock_that_stands_still_is_no_interval(machine) -> None:
    # covers: resource_probe/cache-clock
    machine[1] = reading()
    with pytest.raises(ProbeFailed):
        ProcessProbe(lambda: 5.0, lambda _seconds: None, lambda: 0).observe(ProbeTarget(pids=(1,)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_ram_is_in_pages_of_this_machine(monkeypatch, page) -> None:
    # covers: resource_probe/page-size
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: page if name == "SC_PAGE_SIZE" else real(name))
    before = probe_module._read_linux(os.getpid(), probe_module._StatFiles())
    assert before is not None
    assert before.ram_bytes % page == 0
    assert before.ram_bytes > 100 * page


def test_the_own_process_is_read_for_real() -> None:
    observation = companion_probe().observe(ProbeTarget(pids=(os.getpid(),)))
    assert observation.ram_bytes > MIB
    assert 0 <= observation.cpu_percent <= 100


def test_without_proc_the_same_numbers_come_from_psutil() -> None:
    # covers: resource_probe/windows
    read = probe_module._read_elsewhere(os.getpid())
    assert read is not None
    assert read.ram_bytes > MIB
    assert read.cpu_seconds > 0
    assert probe_module._read_elsewhere(2**22 + 1) is None


class FakeNvml:
    """The driver's library with two devices, as a test describes them."""

    # ruff: noqa: N802 - the library's own names

    class NVMLError(Exception):
        value = 9

    NVML_ERROR_LIBRARY_NOT_FOUND = 12

    def __init__(self, *, fails: str = "") -> None:
        self.fails, self.open = fails, 0

    def __getattr__(self, name: str):
        assert "Processes" not in name, "the list of processes is nobody's business"
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        self._fail("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetMemoryInfo(self, _device: int) -> SimpleNamespace:
        self._fail("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(used=500, free=40)

    def _fail(self, name: str) -> None:
        if name == self.fails:
            raise self.NVMLError


@pytest.fixture
def with_driver(monkeypatch, tmp_path):
    device = tmp_path / "nvidiactl"
    device.touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(probe_module, "_NVIDIA_DEVICE", device)

    def install(nvml: FakeNvml) -> FakeNvml:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return install


def test_vram_is_the_devices_total_and_no_process_is_asked_for(with_driver) -> None:
    # covers: resource_probe/vram
    nvml = with_driver(FakeNvml())
    assert probe_module._read_vram() == 1000
    assert nvml.open == 0


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_does_not_answer_is_a_failed_probe(with_driver, fails) -> None:
    nvml = with_driver(FakeNvml(fails=fails))
    with pytest.raises(ProbeFailed):
        probe_module._read_vram()
    assert nvml.open == 0


def test_free_video_memory_is_that_of_all_devices(with_driver) -> None:
    nvml = with_driver(FakeNvml())
    assert probe_module.free_vram() == 80
    assert nvml.open == 0


def test_without_a_driver_there_is_no_vram(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(probe_module, "_NVIDIA_DEVICE", tmp_path / "none")
    assert probe_module._read_vram() == 0
    assert probe_module.free_vram() == 0
