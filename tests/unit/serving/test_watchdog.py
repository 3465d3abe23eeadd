"""What the watchdog does about a runtime that the kernel ended at its ceiling (I-12)."""

from __future__ import annotations

import asyncio
import errno

import pytest

from companion_core.decisions import restart
from companion_core.decisions.restart import Ending, Size
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.serving.events import Event, EventKind
from companion_core.serving.watchdog import Timing, Watchdog
from companion_core.system.running_clock import RunningClock

pytestmark = pytest.mark.unit

TIMING = Timing(health_interval=60)


class Served:
    """Ends again and again, each time as told."""

    def __init__(self, reason: Reason, size: Size) -> None:
        self.exited = asyncio.Event()
        self.exited.set()
        self.size = size
        self.last_ending = Ending(reason=reason, exit_code=-9, ready=True)
        self.sizes: list[Size] = []
        self.stops = 0

    async def restart(self) -> None:
        self.sizes.append(self.size)

    async def stop(self) -> None:
        self.stops += 1


def test_a_runtime_is_started_smaller_until_there_is_no_smaller_size() -> None:
    async def life() -> Served:
        served = Served(Reason.RAM_OVER_LIMIT, Size(parallel=2, context_length=1024))
        watchdog = Watchdog(served, TIMING)
        await watchdog.run()
        assert watchdog.gave_up is Reason.RAM_OVER_LIMIT
        return served

    served = asyncio.run(life())
    assert served.sizes == [
        Size(parallel=1, context_length=1024),
        Size(parallel=1, context_length=512),
    ]
    assert served.stops == 3


class Silent(Served):
    """Runs on, and gives no good answer."""

    def __init__(self) -> None:
        super().__init__(Reason.RUNTIME_EXITED, Size(parallel=1, context_length=None))
        self.exited.clear()
        self.checks = 0
        self.ended: Reason | None = None
        self.asked = asyncio.Event()

    def over_memory_for(self) -> float:
        return 0.0

    def unobserved_for(self) -> float:
        return 0.0

    async def check_health(self) -> Verdict:
        self.checks += 1
        self.asked.set()
        return refuse(Reason.HEALTH_FAILED)

    def terminate_unhealthy(self, reason: Reason) -> None:
        self.ended = reason
        self.exited.set()


@pytest.mark.parametrize("running", [True, False])
def test_45_seconds_asleep_do_not_cost_a_runtime_that_misses_one_check(running: bool) -> None:
    now = 1000.0

    def counts_sleep() -> float:
        return now

    async def life() -> Silent:
        nonlocal now
        served, clock = Silent(), RunningClock(counts_sleep)
        chosen = clock if running else counts_sleep
        watchdog = Watchdog(served, Timing(health_interval=0.01), clock=chosen)
        watching = asyncio.ensure_future(watchdog._watch())
        await asyncio.sleep(0)
        now += 45
        async with asyncio.timeout(30):
            await served.asked.wait()
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.wait({watching})
        return served

    assert asyncio.run(life()).ended is None


class Starting(Served):
    """Ended once, while it served; then each start ends as told, and the one after those serves."""

    def __init__(self, size: Size, *ends: Reason) -> None:
        super().__init__(Reason.RUNTIME_EXITED, size)
        self.ends = list(ends)
        self.serves = asyncio.Event()

    async def restart(self) -> None:
        await super().restart()
        if self.ends:
            reason = self.ends.pop(0)
            self.last_ending = Ending(reason=reason, exit_code=-9, ready=False)
            raise EnvironmentUnavailable(reason)
        self.exited.clear()
        self.serves.set()


def lived(served: Starting) -> tuple[list[Size], Reason | None, list[float]]:
    """Return the sizes of its starts, why it was given up, and the waits before another start."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async def life() -> tuple[list[Size], Reason | None, list[float]]:
        watchdog = Watchdog(served, TIMING, sleep=sleep)
        watching = asyncio.ensure_future(watchdog.run())
        serving = asyncio.ensure_future(served.serves.wait())
        await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, serving):
            task.cancel()
        await asyncio.wait({watching, serving})
        return served.sizes, watchdog.gave_up, waits

    return asyncio.run(life())


LARGE, HALF, SHORT = (
    Size(parallel=parallel, context_length=length)
    for parallel, length in ((2, 1024), (1, 1024), (1, 512))
)


def test_a_start_that_the_kernel_ends_at_its_ceiling_is_made_smaller_at_once() -> None:
    served = Starting(LARGE, Reason.RAM_OVER_LIMIT, Reason.RAM_OVER_LIMIT)
    # The one wait comes after the end that was not for memory.
    assert lived(served) == ([LARGE, HALF, SHORT], None, [restart.DELAYS_SECONDS[0]])


def test_a_start_that_cannot_be_made_smaller_is_given_up_at_once() -> None:
    served = Starting(SHORT, Reason.RAM_OVER_LIMIT)
    waits = [restart.DELAYS_SECONDS[0]]
    assert lived(served) == ([SHORT], Reason.RAM_OVER_LIMIT, waits)


def test_a_smaller_start_that_ends_otherwise_is_tried_again_with_its_size() -> None:
    served = Starting(LARGE, Reason.RAM_OVER_LIMIT, Reason.RUNTIME_EXITED)
    assert lived(served) == ([LARGE, HALF, HALF], None, list(restart.DELAYS_SECONDS[:2]))


class ShortOfFiles(Starting):
    """Its first restart finds no descriptor free."""

    async def restart(self) -> None:
        if not self.sizes:
            self.sizes.append(self.size)
            raise OSError(errno.EMFILE, "")
        await super().restart()


def test_a_restart_that_finds_no_descriptor_free_is_an_ending_and_not_the_end() -> None:
    served = ShortOfFiles(Size(parallel=1, context_length=None))
    sizes, gave_up, waits = lived(served)
    assert gave_up is None
    assert len(sizes) == 2
    assert waits == list(restart.DELAYS_SECONDS[:2])


def test_a_check_that_finds_no_descriptor_free_has_failed() -> None:
    class Blind(Silent):
        async def check_health(self) -> Verdict:
            await super().check_health()
            raise OSError(errno.EMFILE, "")

    async def life() -> Blind:
        served = Blind()
        watchdog = Watchdog(served, Timing(health_interval=0.001, unresponsive_after=0.05))
        async with asyncio.timeout(30):
            await watchdog._watch()
        return served

    assert asyncio.run(life()).ended is Reason.HEALTH_FAILED


def test_each_ending_and_what_follows_it_is_told() -> None:
    told: list[Event] = []

    async def sleep(_seconds: float) -> None:
        await asyncio.sleep(0)

    async def life(served: Starting) -> None:
        watching = asyncio.ensure_future(
            Watchdog(served, TIMING, sleep=sleep, tell=told.append).run()
        )
        serving = asyncio.ensure_future(served.serves.wait())
        await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        for task in (watching, serving):
            task.cancel()
        await asyncio.wait({watching, serving})

    exited, memory = Reason.RUNTIME_EXITED, Reason.RAM_OVER_LIMIT
    asyncio.run(life(Starting(LARGE, memory)))
    assert [(event.kind, event.reason) for event in told] == [
        (EventKind.RUNTIME_ENDED, exited),
        (EventKind.RUNTIME_RESTARTING, Reason.OK),
        (EventKind.RUNTIME_ENDED, memory),
        (EventKind.RUNTIME_RESTARTING, Reason.OK),
        (EventKind.RUNTIME_RESTORED, Reason.OK),
    ]
    assert told[1].text == f"in {restart.DELAYS_SECONDS[0]:.0f} s"
    assert told[3].text == "smaller: 1 at once, 1024 tokens of context"

    told.clear()
    asyncio.run(life(Starting(SHORT, memory)))
    assert [event.kind for event in told[2:]] == ["runtime_ended", "runtime_gave_up"]
    assert told[-1].reason is memory


class Busy(Served):
    """Serves a request all the time, and is asked for a token, or not."""

    idle = False

    def __init__(self, resting_for: float) -> None:
        super().__init__(Reason.RUNTIME_EXITED, LARGE)
        self.exited.clear()
        self.resting_for = resting_for
        self.rounds = self.asked = 0
        self.ended: Reason | None = None

    async def check_health(self) -> Verdict:
        self.rounds += 1
        if self.rounds >= 10 and self.ended is None:
            self.exited.set()
        return OK

    async def computes(self) -> bool:
        self.asked += 1
        return False

    def over_memory_for(self) -> float:
        return 0.0

    def unobserved_for(self) -> float:
        return 0.0

    def terminate_unhealthy(self, reason: Reason) -> None:
        self.ended = reason
        self.exited.set()


QUICK = Timing(health_interval=0.001, liveness_interval=0, unresponsive_after=0.001)


def test_a_runtime_that_hangs_in_a_request_is_asked_for_a_token_and_ended() -> None:
    served = Busy(resting_for=QUICK.unresponsive_after)
    asyncio.run(Watchdog(served, QUICK)._watch())
    assert served.asked > 0
    assert served.ended is Reason.HEALTH_FAILED


def test_a_runtime_that_works_on_a_request_is_asked_for_nothing() -> None:
    served = Busy(resting_for=0)
    asyncio.run(Watchdog(served, QUICK)._watch())
    assert (served.asked, served.ended, served.rounds) == (0, None, 10)


class Unobserved(Busy):
    """Answers well, and has so many processes that nobody can say what they use."""

    def __init__(self, seconds: float) -> None:
        super().__init__(resting_for=0)
        self.seconds = seconds

    def unobserved_for(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("share", "ended"), [(1, Reason.PROBE_FAILED), (0.9, None)])
def test_a_runtime_whose_use_cannot_be_read_is_ended(share: float, ended: Reason | None) -> None:
    served = Unobserved(share * QUICK.unresponsive_after)
    asyncio.run(Watchdog(served, QUICK)._watch())
    assert served.ended is ended


class Asleep(Busy):
    """Answers badly once, just after the machine has slept for hours."""

    def __init__(self, bad: int) -> None:
        super().__init__(resting_for=0)
        self.bad = bad
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def check_health(self) -> Verdict:
        await super().check_health()
        self.now += 10
        if self.rounds == 4:
            self.now += 7200
        return OK if not 5 <= self.rounds < 5 + self.bad else refuse(Reason.HEALTH_FAILED)


@pytest.mark.parametrize(("bad", "ended"), [(1, None), (2, None), (3, Reason.HEALTH_FAILED)])
def test_only_the_time_in_which_answers_were_bad_counts(bad: int, ended: Reason | None) -> None:
    served = Asleep(bad)
    timing = Timing(health_interval=0.001, unresponsive_after=30)
    asyncio.run(Watchdog(served, timing, clock=served.clock)._watch())
    assert served.ended is ended
