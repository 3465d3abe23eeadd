"""Observe the runtime's tree while it runs, and keep the newest verdict ready (I-12)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import Callable
from typing import Final

from companion_core.decisions.resources import evaluate_resources
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import PluginFault, Reason
from companion_core.plugin_host import call_provider
from companion_core.providers import (
    ProbeFailed,
    ProbeTarget,
    ResourceLimits,
    ResourceObservation,
    ResourceProbe,
)

__all__ = ["ResourceMonitor"]

INTERVAL_SECONDS: Final = 0.4  # between two questions, so that answers come twice a second
STALE_SECONDS: Final = 0.5
OBSERVE_SECONDS: Final = 1.5
_MAX_BYTES: Final = 2**53
_MAX_PERCENT: Final = 100.0
# No gap between two observations proves by itself that the runtime was over its ceiling meanwhile,
# or out of sight: the companion may have been asleep. It is less than a watchdog waits.
_LONGEST_GAP: Final = 4.0
# Of one processor, in percent: a runtime that works on a request uses more, and one that only
# answers health checks less, also while a GPU does the work.
_AT_REST_PERCENT: Final = 5.0
_MEMORY: Final = frozenset({Reason.RAM_OVER_LIMIT, Reason.VRAM_OVER_LIMIT})


_FAILED: Final = refuse(Reason.PROBE_FAILED)


class ResourceMonitor:
    """Asks the probe twice a second or more, one question at a time, and remembers the answer.

    The verdict denies where the probe failed, was late or gave a number out of range, and where the
    observation is older than half a second. `fresh_verdict` is asked before each request and
    observes nothing itself: where the newest observation is too old, because the machine or the
    companion was held up, the request waits for the next one, which is under way.

    Args:
        probe: the chosen plugin's.
        tree: returns the runtime's processes.
        limits: the ceilings.
        clock: monotonic seconds.
        plugin: the name of the probe's plugin.
        interval: seconds between two questions.
        patience: seconds that an answer may take.

    Attributes:
        latest: the newest observation that was in range; None before that.
    """

    def __init__(
        self,
        probe: ResourceProbe,
        tree: Callable[[], tuple[int, ...]],
        limits: ResourceLimits,
        *,
        clock: Callable[[], float],
        plugin: str = "process",
        interval: float = INTERVAL_SECONDS,
        patience: float = OBSERVE_SECONDS,
    ) -> None:
        self.latest: ResourceObservation | None = None
        self._probe = probe
        self._tree = tree
        self._limits = limits
        self._clock = clock
        self._plugin = plugin
        self._interval = interval
        self._patience = patience
        self._verdict = refuse(Reason.PROBE_FAILED)
        self._observed_at = -math.inf
        self._over_at: float | None = None  # the newest observation, if above a ceiling of memory
        self._over_seconds = 0.0
        self._failed_at: float | None = None  # the newest observation, if it failed
        self._unobserved_seconds = 0.0
        self._resting_since: float | None = None
        self._waiting: list[Callable[[], None]] = []
        self._turn = threading.Lock()  # guards the next two
        self._asking, self._wanted = False, True
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Observe once, then in the background until `stop`."""
        if self._task is not None:
            await self.stop()
        self._wanted = True
        await self._observe()
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """End the observation; from now on every verdict denies."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self.latest, self._verdict = None, refuse(Reason.PROBE_FAILED)
        self._over_at, self._over_seconds, self._resting_since = None, 0.0, None
        self._failed_at, self._unobserved_seconds = None, 0.0
        self._call_waiting()
        with self._turn:
            unused, self._wanted = self._wanted and not self._asking, False
        if unused:  # else the question that still runs does so after its answer
            with contextlib.suppress(PluginFault):
                await call_provider(self._plugin, self._release, seconds=self._patience)

    def over_memory_for(self) -> float:
        """Return for how many seconds every observation was above a ceiling of memory.

        Processor time does not count: its use falls by itself. An observation that failed says
        nothing: a runtime could make one fail from time to time.
        """
        return self._over_seconds

    def unobserved_for(self) -> float:
        """Return for how many seconds every observation failed."""
        return self._unobserved_seconds

    def resting_for(self) -> float:
        """Return for how many seconds every observation showed next to no use of a processor."""
        return 0.0 if self._resting_since is None else self._clock() - self._resting_since

    def verdict(self) -> Verdict:
        """Return whether the newest observation is within the limits and fresh."""
        return self._verdict if self._is_fresh() else _FAILED

    def fresh_verdict(self) -> Verdict | None:
        """Return the same; None where the newest observation is too old and another one comes."""
        if self._is_fresh():
            return self._verdict
        return _FAILED if self._task is None else None

    def when_observed(self, call: Callable[[], None]) -> None:
        """Call once after the next observation, or after `stop`."""
        self._waiting.append(call)

    def _is_fresh(self) -> bool:
        return 0 <= self._clock() - self._observed_at <= STALE_SECONDS

    def _call_waiting(self) -> None:
        calls, self._waiting = self._waiting, []
        for call in calls:
            asyncio.get_running_loop().call_soon(call)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._observed_at + self._interval - self._clock()))
            await self._observe()

    async def _observe(self) -> None:
        began = self._clock()
        try:
            answer = await call_provider(self._plugin, self._ask, seconds=self._patience)
        except (PluginFault, ProbeFailed, RuntimeError):  # the last: no thread could be had
            answer = None
        observation = _rebuild(answer)
        self.latest = observation
        self._observed_at = began
        if observation is None:
            self._verdict = refuse(Reason.PROBE_FAILED)
        else:
            self._verdict = evaluate_resources(observation, self._limits)
        if not _is_at_rest(observation):
            self._resting_since = None
        elif self._resting_since is None:
            self._resting_since = began
        if self._verdict.reason in _MEMORY:
            self._over_seconds += _gap(self._over_at, began)
            self._over_at = began
        elif observation is not None:
            self._over_at, self._over_seconds = None, 0.0
        if observation is None:
            self._unobserved_seconds += _gap(self._failed_at, began)
            self._failed_at = began
        else:
            self._failed_at, self._unobserved_seconds = None, 0.0
        self._call_waiting()

    def _ask(self) -> object:
        """Run in the worker. While one question hangs, no second one is asked."""
        with self._turn:
            if self._asking:
                raise ProbeFailed
            self._asking = True
        try:
            return self._probe.observe(ProbeTarget(pids=self._tree()))
        finally:
            with self._turn:
                self._asking, wanted = False, self._wanted
            if not wanted:
                self._release()

    def _release(self) -> None:
        """Ask about no process, so that the probe closes what it has open of the earlier ones."""
        with contextlib.suppress(ProbeFailed):
            self._probe.observe(ProbeTarget(pids=()))


def _gap(before: float | None, now: float) -> float:
    """Return the seconds between two observations, as far as they count."""
    return 0.0 if before is None else min(now - before, _LONGEST_GAP)


def _is_at_rest(observation: ResourceObservation | None) -> bool:
    if observation is None:
        return False
    return observation.cpu_percent * (os.cpu_count() or 1) < _AT_REST_PERCENT


def _rebuild(answer: object) -> ResourceObservation | None:
    """Return a new observation from exact numbers in range, else None."""
    if type(answer) is not ResourceObservation:
        return None
    ram, vram, cpu = answer.ram_bytes, answer.vram_bytes, answer.cpu_percent
    if type(ram) is not int or type(vram) is not int or type(cpu) not in {int, float}:
        return None
    if not 0 <= ram <= _MAX_BYTES or not 0 <= vram <= _MAX_BYTES:
        return None
    if not 0 <= cpu <= _MAX_PERCENT:
        return None
    return ResourceObservation(ram_bytes=ram, vram_bytes=vram, cpu_percent=cpu)
