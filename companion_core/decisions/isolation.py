"""Rules for this file: how a runtime is confined, and what each tier promises (I-07, I-08).

Pure; imports values only. A tier is chosen among those that were seen to work on this machine; a
promise is in the table only if a test of its tier has shown it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason

__all__ = ["PROMISES", "TIERS", "Promise", "Tier", "choose_tier"]


class Tier(enum.StrEnum):
    """A way to confine a process tree."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    SANDBOX_EXEC = "sandbox-exec"
    JOB_OBJECT = "job-object"
    NONE = "none"


class Promise(enum.StrEnum):
    """What a confined runtime cannot do."""

    HOME = "reads no file of the person but what it was given"
    SESSION_BUS = "reaches no Unix socket of another program"
    PARENT = "reads neither memory nor environment of the companion"
    NETWORK = "reaches no network"
    SIGNALS = "signals no process of another program"
    LIFETIME = "ends when the companion ends"


# The tiers of each system, the best first.
TIERS: Final[Mapping[str, tuple[Tier, ...]]] = MappingProxyType(
    {
        "linux": (Tier.BUBBLEWRAP, Tier.LANDLOCK),
        "darwin": (Tier.SANDBOX_EXEC,),
        "win32": (Tier.JOB_OBJECT,),
    }
)

# In the Landlock tier a process namespace keeps `SIGNALS`, or Landlock's scopes (Linux 6.12), or
# the filter, which lets nobody signal where there is neither. The keeper keeps `LIFETIME`.
PROMISES: Final[Mapping[Tier, frozenset[Promise]]] = MappingProxyType(
    {
        Tier.BUBBLEWRAP: frozenset(Promise),
        Tier.LANDLOCK: frozenset(Promise),
        Tier.SANDBOX_EXEC: frozenset({Promise.HOME, Promise.NETWORK, Promise.LIFETIME}),
        Tier.JOB_OBJECT: frozenset({Promise.LIFETIME}),
        Tier.NONE: frozenset({Promise.LIFETIME}),
    }
)


def choose_tier(policy: object, platform: str, working: frozenset[Tier]) -> Tier | Verdict:
    """Choose how runtimes are confined.

    Args:
        policy: "best" takes the best tier that works, down to `NONE`; "required" takes the
            best tier of this system or refuses.
        platform: as `sys.platform` has it.
        working: the tiers that worked when they were probed on this machine.

    Returns:
        the tier, or `isolation_unavailable`.
    """
    known = TIERS.get(platform, ())
    if policy == "required":
        if known and known[0] in working:
            return known[0]
        return refuse(Reason.ISOLATION_UNAVAILABLE)
    if policy != "best":
        return refuse(Reason.ISOLATION_UNAVAILABLE)
    return next((tier for tier in known if tier in working), Tier.NONE)
