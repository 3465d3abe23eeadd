"""What is looked at again and again to tell of it: refusals for want of room, and the keychain.

Nothing is decided here. A look costs a dictionary or one call of the keychain's plugin.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from companion_core.errors import REASONS, CompanionError, Reason
from companion_core.serving.events import Event, EventKind, Tell

__all__ = ["OVERLOAD", "watch_keychain", "watch_overload"]

# The refusals that say that there is more to do than can be done.
OVERLOAD: Final = frozenset(
    {
        Reason.AT_CAPACITY,
        Reason.QUEUE_FULL,
        Reason.QUEUE_DEADLINE,
        Reason.RATE_LIMITED,
        Reason.CONNECTION_LIMIT,
        Reason.RAM_OVER_LIMIT,
        Reason.VRAM_OVER_LIMIT,
        Reason.CPU_OVER_LIMIT,
    }
)
LOOK_SECONDS: Final = 1.0
# An overload has ended when so many looks in a row found no refusal.
QUIET_LOOKS: Final = 10
KEYCHAIN_SECONDS: Final = 60.0

Sleep = Callable[[float], Awaitable[object]]


async def watch_overload(
    refusals: Callable[[], Mapping[Reason, int]], tell: Tell, *, sleep: Sleep = asyncio.sleep
) -> None:
    """Tell when requests begin to be refused for want of room, and when that has ended.

    Args:
        refusals: how many answers there were so far, by reason.
        tell: takes the events.
        sleep: waits so many seconds.
    """
    seen, quiet, refused = Counter(refusals()), QUIET_LOOKS, 0
    while True:
        await sleep(LOOK_SECONDS)
        now = Counter(refusals())
        new = {reason: count for reason, count in (now - seen).items() if reason in OVERLOAD}
        seen = now
        if new:
            if quiet >= QUIET_LOOKS:
                refused = 0
                most = max(new, key=lambda reason: new[reason])
                text = f"{sum(new.values())} in the last second: {REASONS[most].advice}"
                tell(Event(kind=EventKind.OVERLOADED, text=text, reason=most))
            quiet, refused = 0, refused + sum(new.values())
        elif quiet < QUIET_LOOKS:
            quiet += 1
            if quiet == QUIET_LOOKS:
                text = f"{refused} requests were refused"
                tell(Event(kind=EventKind.OVERLOAD_ENDED, text=text))


async def watch_keychain(
    ask: Callable[[], Awaitable[Reason]], tell: Tell, *, sleep: Sleep = asyncio.sleep
) -> None:
    """Tell when the keychain stops answering, for which reason, and when it answers again.

    Args:
        ask: returns `ok`, or why it cannot be used.
        tell: takes the events.
        sleep: waits so many seconds.
    """
    before = Reason.OK
    while True:
        await sleep(KEYCHAIN_SECONDS)
        try:
            reason = await ask()
        except CompanionError as error:
            reason = error.reason
        if reason is before:
            continue
        before = reason
        if reason is Reason.OK:
            tell(Event(kind=EventKind.KEYCHAIN_RESTORED))
        else:
            text = REASONS[reason].advice
            tell(Event(kind=EventKind.KEYCHAIN_UNAVAILABLE, text=text, reason=reason))
