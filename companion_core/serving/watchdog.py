"""Keep a runtime serving: check its health, replace it when it ended, shrink it, or give up.

`decisions.restart` decides what follows an ending. The gateway keeps its port and the session its
token, whatever becomes of the runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from companion_core.decisions.restart import Ending, Size, decide_restart, smaller
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason
from companion_core.runtime import describe_exit
from companion_core.serving.events import Event, EventKind, Tell
from companion_core.system.clock import recency_now

__all__ = ["Served", "Timing", "Watchdog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The watchdog's times, in seconds.

    Attributes:
        health_interval: between two health checks.
        liveness_interval: between two tokens that an idle runtime is asked for.
        unresponsive_after: a runtime without a good answer for so long is ended. One that uses no
            processor for so long counts as idle, whatever it was asked. One whose use could not be
            observed for so long may use anything, and is ended too.
        over_limit_after: a runtime above a ceiling of memory for so long is drained and started
            smaller.
        drain: how long such a drain waits for running answers.
    """

    health_interval: float = 5.0
    liveness_interval: float = 60.0
    unresponsive_after: float = 30.0
    over_limit_after: float = 5.0
    drain: float = 30.0


class Served(Protocol):
    """What is watched: one runtime behind its gateway."""

    exited: asyncio.Event
    size: Size

    @property
    def last_ending(self) -> Ending | None: ...  # noqa: D102 - see `Supervisor.last_ending`
    @property
    def idle(self) -> bool: ...  # noqa: D102 - no request runs or waits
    @property
    def resting_for(self) -> float: ...  # noqa: D102 - seconds without use of a processor

    async def restart(self) -> None: ...  # noqa: D102 - starts it with the size in `size`
    async def stop(self) -> None: ...  # noqa: D102 - ends the runtime
    async def drain(self, seconds: float) -> object: ...  # noqa: D102 - takes no new request
    async def check_health(self) -> Verdict: ...  # noqa: D102 - asks through the gateway
    async def computes(self) -> bool: ...  # noqa: D102 - asks for one token
    def terminate_unhealthy(self, reason: Reason) -> None: ...  # noqa: D102 - sets `exited`
    def over_memory_for(self) -> float: ...  # noqa: D102 - returns seconds
    def unobserved_for(self) -> float: ...  # noqa: D102 - returns seconds


class Watchdog:
    """Watches one runtime until it gives up.

    Args:
        served: the runtime.
        timing: see `Timing`.
        sleep: waits so many seconds before another start.
        clock: seconds in which the companion ran, see `RunningClock`: a runtime says nothing to
            one that is asleep.
        tell: hears how each runtime ended, and what follows.

    Attributes:
        gave_up: why no runtime is started any more; None while there is one or will be.
    """

    def __init__(
        self,
        served: Served,
        timing: Timing,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = recency_now,
        tell: Tell = lambda _event: None,
    ) -> None:
        self.gave_up: Reason | None = None
        self._served = served
        self._timing = timing
        self._sleep = sleep
        self._clock = clock
        self._tell = tell
        self._endings: list[float] = []

    async def run(self) -> None:
        """Watch, and return after giving up; by then nothing of the runtime is left.

        Raises:
            CompanionError: `stale_runtime`, something of it may be left.
        """
        while self.gave_up is None:
            ending: Ending | None = await self._watch()
            await self._served.stop()
            while ending is not None and self.gave_up is None:
                self._tell_ending(ending)
                ending = await self._start_another(ending)
            if self.gave_up is not None:
                self._tell(Event(kind=EventKind.RUNTIME_GAVE_UP, reason=self.gave_up))
            else:
                self._tell(Event(kind=EventKind.RUNTIME_RESTORED))

    async def _watch(self) -> Ending:
        """Return how the runtime ended; also where it was drained for the memory that it uses."""
        # Not from the last good answer on: until the first bad one, time in which this program did
        # not run, asleep or held up, may have passed.
        silent_since: float | None = None
        asked_at = self._clock()
        while not await self._exited_within(self._timing.health_interval):
            if self._served.over_memory_for() >= self._timing.over_limit_after:
                await self._served.drain(self._timing.drain)
                return Ending(reason=Reason.RAM_OVER_LIMIT, exit_code=None, ready=True)
            if self._served.unobserved_for() >= self._timing.unresponsive_after:
                self._served.terminate_unhealthy(Reason.PROBE_FAILED)
                continue
            began = self._clock()
            ok = await self._is_healthy()
            if (
                ok
                and self._is_idle()
                and self._clock() - asked_at >= self._timing.liveness_interval
            ):
                ok = await self._served.computes()
                asked_at = self._clock() if ok else asked_at
            if ok:
                silent_since = None
            elif silent_since is None:
                silent_since = began
            elif self._clock() - silent_since >= self._timing.unresponsive_after:
                self._served.terminate_unhealthy(Reason.HEALTH_FAILED)
        ended = Ending(reason=Reason.RUNTIME_EXITED, exit_code=None, ready=True)
        return self._served.last_ending or ended

    async def _is_healthy(self) -> bool:
        try:
            return (await self._served.check_health()).ok
        except OSError:  # no descriptor is left for the question, just now
            return False

    def _is_idle(self) -> bool:
        """Return whether the runtime has nothing to do, or does nothing of what it has to do.

        Some answer health checks and hang in every other request; those never leave it idle.
        """
        served = self._served
        return served.idle or served.resting_for >= self._timing.unresponsive_after

    async def _exited_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._served.exited.wait()
        return self._served.exited.is_set()

    async def _start_another(self, ending: Ending) -> Ending | None:
        """Return how that ended; None when the new runtime serves or this gave up."""
        if ending.reason is Reason.RAM_OVER_LIMIT:  # with the same size it would end so again
            size = smaller(self._served.size)
            if size is None:
                self.gave_up = ending.reason
                return None
            self._served.size, delay = size, 0.0
            how = f"smaller: {size.parallel} at once, {size.context_length} tokens of context"
        else:
            self._endings.append(recency_now())
            decision = decide_restart(ending, self._endings, recency_now())
            if decision.delay is None:
                self.gave_up = decision.reason
                return None
            delay, how = decision.delay, f"in {decision.delay:.0f} s"
        self._tell(Event(kind=EventKind.RUNTIME_RESTARTING, text=how))
        if delay:
            await self._sleep(delay)
        try:
            await self._served.restart()
        except CompanionError as error:
            last = self._served.last_ending
            code = last.exit_code if last is not None else None
            return Ending(reason=error.reason, exit_code=code, ready=False)
        except OSError:  # what the machine lacks it may have again before the next start
            return Ending(reason=Reason.SPAWN_FAILED, exit_code=None, ready=False)
        return None

    def _tell_ending(self, ending: Ending) -> None:
        ended = EventKind.RUNTIME_ENDED
        self._tell(Event(kind=ended, text=describe_exit(ending.exit_code), reason=ending.reason))
