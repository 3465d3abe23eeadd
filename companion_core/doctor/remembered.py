"""Checks of what is remembered of earlier manifests, and of the clock that they are judged by.

Both protect from a manifest that is too old, so `repair` changes them only after the person has
said yes: at a terminal, or with `--yes`. Nothing that comes over the network does it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Final

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.decisions.manifest import CLOCK_SKEW_SECONDS
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.findings import Finding, Section, broken, fine, repaired, skipped
from companion_core.doctor.state import ACCESS, REPAIR
from companion_core.errors import Reason
from companion_core.system.clock import wall_now

__all__ = ["CLOCK", "checks"]

CLOCK: Final = "clock"
_MEMORY: Final = "manifest-memory"


def check_memory(situation: Situation, *, clock: Callable[[], float] = wall_now) -> Finding:
    """Require that what is remembered of earlier manifests can be read (I-02)."""
    memory = ManifestMemory.of(situation.paths)
    damaged = memory.damaged_files()
    if not damaged:
        return fine("can be read")
    names = ", ".join(str(path) for path in damaged)
    if not situation.repair:
        return broken(Reason.MANIFEST_MEMORY_DAMAGED, f"damaged: {names}", fix=REPAIR)
    if situation.config is None:
        return skipped(Reason.CONFIGURATION_INVALID, f"damaged: {names}; needs configuration")
    if not situation.confirm(
        "The record of earlier manifests is damaged. A new one is made from the manifests that "
        "are stored; what else was known is lost, so that an older manifest may be accepted. "
        "Begin a new record?"
    ):
        return _unconfirmed(Reason.MANIFEST_MEMORY_DAMAGED, f"damaged: {names}")
    section = situation.config.manifest
    proved = memory.make_anew(() if section is None else section.trusted_keys, clock())
    detail = f"set aside: {names}; the new record knows {proved} stored manifests"
    return repaired(Reason.MANIFEST_MEMORY_DAMAGED, detail)


def check_clock(situation: Situation, *, clock: Callable[[], float] = wall_now) -> Finding:
    """Require that the clock was not set back before the latest time seen (I-18)."""
    now = clock()
    memory = ManifestMemory.of(situation.paths)
    latest = memory.latest_time(now)
    behind = latest - now
    if behind <= CLOCK_SKEW_SECONDS:
        return fine("not behind the latest time seen")
    detail = (
        f"the clock says {_instant(now)}, {behind / 3600:.1f} hours behind {_instant(latest)}, "
        "the latest time seen"
    )
    if not situation.repair:
        return broken(Reason.CLOCK_SET_BACK, detail, fix=REPAIR)
    if not situation.confirm(
        f"This machine's clock says {_instant(now)}. It was later before: {_instant(latest)}. "
        "If the clock is wrong now, a manifest that has expired would be accepted. "
        "Is the time right now?"
    ):
        return _unconfirmed(Reason.CLOCK_SET_BACK, detail)
    memory.confirm_clock(now)
    if memory.latest_time(now) - now > CLOCK_SKEW_SECONDS:
        signed = "; an accepted manifest was issued after what the clock says, so it is slow"
        return broken(Reason.CLOCK_SET_BACK, detail + signed)
    return repaired(Reason.CLOCK_SET_BACK, f"you confirmed that it is {_instant(now)}")


def _unconfirmed(reason: Reason, detail: str) -> Finding:
    return broken(reason, f"{detail}; not confirmed", fix=f"{REPAIR} --yes")


def _instant(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M} UTC"


def checks() -> tuple[Check, ...]:
    """Return the checks of this file; a person who is asked has no deadline."""
    check = partial(Check, section=Section.STATE, needs=(ACCESS,), seconds=None)
    return (
        check(id=_MEMORY, title="record of manifests", run=check_memory),
        Check(
            id=CLOCK,
            title="clock",
            section=Section.MACHINE,
            run=check_clock,
            needs=(ACCESS, _MEMORY),
            seconds=None,
        ),
    )
