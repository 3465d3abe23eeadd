"""Rules for this file: whether a runtime that ended is started again, when, and how big.

Pure; imports values only. A runtime that exits by itself before it was ready would do so again.
One that was killed, or had served, may do better next time, but not endlessly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from companion_core.errors import REASONS, Culprit, Reason

__all__ = ["Ending", "RestartDecision", "Size", "decide_restart", "smaller"]

# Before the first restart, the second, and so on; the last value holds for all that follow.
DELAYS_SECONDS: Final = (1.0, 5.0, 15.0, 60.0)
# This many endings within this time are a crash loop.
LOOP_ENDINGS: Final = 5
LOOP_SECONDS: Final = 600.0
# With these the model is let go of: no later start has its proof.
_WITHOUT_MODEL: Final = frozenset({Reason.MODEL_IN_USE, Reason.MODEL_REMOVED})
_LEAST_CONTEXT: Final = 512
_FIRST_CONTEXT: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a runtime, or an attempt to start one, ended.

    Attributes:
        reason: `runtime_exited` for one that ended by itself, else why it was ended.
        exit_code: of a runtime that ended by itself, negative for a signal; None when unknown.
        ready: the runtime had been ready.
    """

    reason: Reason
    exit_code: int | None
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDecision:
    """Whether there is a next start.

    Attributes:
        delay: seconds to wait before it; None when there is none.
        reason: why there is none, else OK.
    """

    delay: float | None
    reason: Reason


def decide_restart(ending: Ending, endings: Sequence[float], now: float) -> RestartDecision:
    """Decide whether the runtime is started again after it ended.

    Args:
        ending: the newest one.
        endings: the time of each ending so far, the newest included, on the clock of `now`.
        now: seconds on a clock that never steps back.

    Returns:
        no delay after a permanent ending (an exit before readiness that no signal caused, or a
        reason that waiting does not change) and in a crash loop; else a delay that grows with
        the endings of the last ten minutes.
    """
    if ending.reason is Reason.RUNTIME_EXITED:
        own_exit = ending.exit_code is not None and ending.exit_code >= 0
        permanent = own_exit and not ending.ready
    else:
        passing = REASONS[ending.reason].culprit is Culprit.ENVIRONMENT
        permanent = not passing or ending.reason in _WITHOUT_MODEL
    if permanent:
        return RestartDecision(delay=None, reason=ending.reason)
    recent = sum(1 for at in endings if 0 <= now - at <= LOOP_SECONDS)
    if recent >= LOOP_ENDINGS:
        return RestartDecision(delay=None, reason=Reason.CRASH_LOOP)
    place = min(max(recent, 1), len(DELAYS_SECONDS)) - 1
    return RestartDecision(delay=DELAYS_SECONDS[place], reason=Reason.OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of the runtime is started: requests at once, and tokens of context for each."""

    parallel: int
    context_length: int | None


def smaller(size: Size) -> Size | None:
    """Return the next smaller size for a runtime over its ceiling; None at the smallest."""
    if size.parallel > 1:
        return Size(parallel=size.parallel // 2, context_length=size.context_length)
    if size.context_length is None:
        return Size(parallel=1, context_length=_FIRST_CONTEXT)
    if size.context_length > _LEAST_CONTEXT:
        return Size(parallel=1, context_length=max(_LEAST_CONTEXT, size.context_length // 2))
    return None
