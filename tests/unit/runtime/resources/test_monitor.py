from __future__ import annotations

import asyncio
import threading

import pytest

from companion_core.decisions.verdict import OK
from companion_core.egress.interface import ProcessUnreadable
from companion_core.errors import Reason
from companion_core.providers import ProbeFailed, ProbeTarget, ResourceLimits, ResourceObservation
from companion_core.runtime.resources.monitor import ResourceMonitor

pytestmark = pytest.mark.unit

LIMITS = ResourceLimits(max_ram_bytes=100, max_vram_bytes=None, max_cpu_percent=100)


def observation(**changes) -> ResourceObservation:
    return ResourceObservation(**{"ram_bytes": 1, "vram_bytes": 0, "cpu_percent": 0.5} | changes)


class FakeProbe:
    def __init__(self, answer: object = None) -> None:
        self.answer = observation() if answer is None else answer
        self.targets: list[ProbeTarget] = []

    def observe(self, target: ProbeTarget):
        self.targets.append(target)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def observed(probe, clock=None) -> ResourceMonitor:
    monitor = ResourceMonitor(probe, lambda: (7, 8), LIMITS, clock=clock or Clock())

    async def life() -> None:
        await monitor._observe()

    asyncio.run(life())
    return monitor


def test_before_the_first_observation_everything_is_denied() -> None:
    monitor = ResourceMonitor(FakeProbe(), lambda: (7,), LIMITS, clock=Clock())
    assert monitor.verdict().reason is Reason.PROBE_FAILED
    assert monitor.latest is None


def test_the_tree_is_asked_for_and_judged() -> None:
    probe = FakeProbe()
    monitor = observed(probe)
    assert probe.targets == [ProbeTarget(pids=(7, 8))]
    assert monitor.verdict() == OK
    assert monitor.latest == probe.answer
    assert monitor.latest is not probe.answer
    assert observed(FakeProbe(observation(ram_bytes=101))).verdict().reason is (
        Reason.RAM_OVER_LIMIT
    )


def test_a_tree_that_cannot_be_told_denies() -> None:
    def unreadable() -> tuple[int, ...]:
        raise ProcessUnreadable

    probe = FakeProbe()
    monitor = ResourceMonitor(probe, unreadable, LIMITS, clock=Clock())
    asyncio.run(monitor._observe())
    assert monitor.verdict().reason is Reason.PROBE_FAILED
    assert probe.targets == []


class Disguised(ResourceObservation):
    pass


@pytest.mark.parametrize(
    "answer",
    [
        ProbeFailed(),
        RuntimeError("broken"),
        SystemExit(1),
        {"ram_bytes": 1},
        Disguised(ram_bytes=1, vram_bytes=0, cpu_percent=0),
        observation(ram_bytes=-1),
        observation(ram_bytes=1.0),
        observation(ram_bytes=True),
        observation(ram_bytes=2**60),
        observation(vram_bytes=None),
        observation(cpu_percent=100.1),
        observation(cpu_percent=-0.1),
        observation(cpu_percent=float("nan")),
        observation(cpu_percent="5"),
    ],
)
def test_a_probe_that_fails_or_lies_denies(answer) -> None:
    monitor = observed(FakeProbe(answer))
    assert monitor.verdict().reason is Reason.PROBE_FAILED
    assert monitor.latest is None


@pytest.mark.parametrize(("passed", "ok"), [(0, True), (0.5, True), (0.6, False), (-1, False)])
def test_an_old_observation_denies_and_so_does_a_clock_that_steps_back(passed, ok) -> None:
    # covers: resource_probe/cache-clock
    clock = Clock()
    monitor = observed(FakeProbe(), clock)
    clock.now += passed
    assert monitor.verdict().ok is ok


def test_an_observation_that_is_too_old_says_nothing_and_the_next_one_tells_who_waits() -> None:
    probe, clock = FakeProbe(), Clock()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock, interval=3600)

    async def life() -> None:
        assert monitor.fresh_verdict().reason is Reason.PROBE_FAILED  # nothing is observed yet
        await monitor.start()
        assert monitor.fresh_verdict() == OK
        clock.now += 2
        assert monitor.fresh_verdict() is None
        told = asyncio.Event()
        monitor.when_observed(told.set)
        await monitor._observe()
        await asyncio.wait_for(told.wait(), 30)
        assert monitor.fresh_verdict() == OK
        stopped = asyncio.Event()
        monitor.when_observed(stopped.set)
        await monitor.stop()
        await asyncio.wait_for(stopped.wait(), 30)
        assert monitor.fresh_verdict().reason is Reason.PROBE_FAILED

    asyncio.run(life())


def test_without_a_thread_it_denies_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    monitor = observed(FakeProbe())
    monkeypatch.setattr("companion_core.runtime.resources.monitor.call_provider", none)
    asyncio.run(monitor._observe())
    assert monitor.verdict().reason is Reason.PROBE_FAILED


def test_what_the_companion_was_asleep_for_is_not_all_time_over_a_ceiling() -> None:
    monitor_clock = Clock()
    monitor = ResourceMonitor(
        FakeProbe(observation(ram_bytes=101)), lambda: (7,), LIMITS, clock=monitor_clock
    )

    async def life() -> None:
        await monitor._observe()
        monitor_clock.now += 45
        await monitor._observe()

    asyncio.run(life())
    assert 0 < monitor.over_memory_for() < 5


def test_one_question_at_a_time() -> None:
    # covers: resource_probe/concurrent-stat
    release, asked = threading.Event(), []

    class Hanging:
        def observe(self, target):
            asked.append(target)
            release.wait(30)
            return observation()

    monitor = ResourceMonitor(Hanging(), lambda: (7,), LIMITS, clock=Clock(), patience=0.05)

    async def life() -> None:
        for _ in range(3):
            await monitor._observe()

    asyncio.run(life())
    release.set()
    assert len(asked) == 1
    assert monitor.verdict().reason is Reason.PROBE_FAILED


def test_it_goes_on_by_itself_and_denies_once_stopped() -> None:
    probe, clock = FakeProbe(), Clock()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock, interval=0.001)

    async def life() -> None:
        await monitor.start()
        assert monitor.verdict() == OK
        async with asyncio.timeout(30):
            while len(probe.targets) < 3:  # noqa: ASYNC110 - another thread counts
                await asyncio.sleep(0.001)
        await monitor.stop()
        await monitor.stop()

    asyncio.run(life())
    assert monitor.verdict().reason is Reason.PROBE_FAILED
    assert monitor.latest is None


def test_how_long_it_is_over_a_ceiling_of_memory_is_counted() -> None:
    probe, clock = FakeProbe(observation(ram_bytes=101)), Clock()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock)

    async def life() -> None:
        assert monitor.over_memory_for() == 0
        await monitor._observe()
        clock.now += 3
        await monitor._observe()
        assert monitor.over_memory_for() == 3
        probe.answer = observation(ram_bytes=100)
        await monitor._observe()
        assert monitor.over_memory_for() == 0

    asyncio.run(life())


def test_an_observation_that_fails_is_no_sign_of_less_memory() -> None:
    probe, clock = FakeProbe(observation(ram_bytes=101)), Clock()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock)

    async def life() -> None:
        for second in range(6):
            probe.answer = ProbeFailed() if second % 2 else observation(ram_bytes=101)
            await monitor._observe()
            clock.now += 1
        assert monitor.over_memory_for() == 4

    asyncio.run(life())


def test_how_long_nothing_could_be_observed_is_counted() -> None:
    probe, clock = FakeProbe(ProbeFailed()), Clock()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock)

    async def life() -> None:
        await monitor._observe()
        assert monitor.unobserved_for() == 0
        clock.now += 3
        await monitor._observe()
        assert monitor.unobserved_for() == 3
        clock.now += 45  # the companion may have been asleep
        await monitor._observe()
        assert 3 < monitor.unobserved_for() < 8
        probe.answer = observation()
        await monitor._observe()
        assert monitor.unobserved_for() == 0
        probe.answer = ProbeFailed()
        for _ in range(2):
            await monitor._observe()
            clock.now += 1
        assert monitor.unobserved_for() == 1
        await monitor.stop()
        assert monitor.unobserved_for() == 0

    asyncio.run(life())


def test_stopping_has_the_probe_close_its_files() -> None:
    async def life() -> list[ProbeTarget]:
        probe = FakeProbe()
        monitor = ResourceMonitor(probe, lambda: (7, 8), LIMITS, clock=Clock())
        await monitor.start()
        await monitor.stop()
        await monitor.stop()
        return probe.targets

    assert asyncio.run(life()) == [ProbeTarget(pids=(7, 8)), ProbeTarget(pids=())]


def test_a_question_that_outlasts_stop_closes_the_files_after_its_answer() -> None:
    asked, release, over = threading.Event(), threading.Event(), threading.Event()

    class Slow(FakeProbe):
        def observe(self, target: ProbeTarget):
            answer = super().observe(target)
            if target.pids:
                asked.set()
                assert release.wait(30)
            else:
                over.set()
                raise ProbeFailed
            return answer

    probe = Slow()
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=Clock())

    async def life() -> None:
        starting = asyncio.ensure_future(monitor.start())
        assert await asyncio.to_thread(asked.wait, 30)
        starting.cancel()
        await asyncio.wait({starting})
        await monitor.stop()
        assert len(probe.targets) == 1
        release.set()
        assert await asyncio.to_thread(over.wait, 30)

    asyncio.run(life())
    assert probe.targets == [ProbeTarget(pids=(7,)), ProbeTarget(pids=())]


def test_how_long_a_runtime_has_used_no_processor_is_counted(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    probe, clock = FakeProbe(observation(cpu_percent=0.5)), Clock()  # 4 % of one of 8
    monitor = ResourceMonitor(probe, lambda: (7,), LIMITS, clock=clock)

    def rested_after(answer: object, seconds: float) -> float:
        probe.answer = answer
        clock.now += seconds
        asyncio.run(monitor._observe())
        return monitor.resting_for()

    resting, working = observation(cpu_percent=0.5), observation(cpu_percent=0.7)
    assert monitor.resting_for() == 0
    assert rested_after(resting, 0) == 0
    assert rested_after(resting, 40) == 40
    assert rested_after(working, 10) == 0
    assert rested_after(resting, 10) == 0
    assert rested_after(resting, 10) == 10
    assert rested_after(ProbeFailed(), 10) == 0  # what cannot be read shows no rest
    assert rested_after(resting, 10) == 0
    clock.now += 7
    asyncio.run(monitor.stop())
    assert monitor.resting_for() == 0
