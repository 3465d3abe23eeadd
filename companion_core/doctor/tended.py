"""Checks of what the companion wrote outside its own folders: other programs' settings, a service.

What drifted is put right with `repair`. What is not ours, or is not understood, is told and never
touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from companion_core.doctor.checks import Check, Situation, Tended
from companion_core.doctor.findings import Finding, Section, broken, fine, repaired, skipped
from companion_core.doctor.state import ACCESS
from companion_core.errors import Reason

__all__ = ["checks"]


def check_clients(situation: Situation) -> Finding:
    """Compare the settings of connected programs with what was written there."""
    return _check(
        situation,
        situation.connected(),
        drifted=Reason.CLIENT_DRIFTED,
        foreign=Reason.CLIENT_FILE_FOREIGN,
        none="no program is connected",
        fix="companion connect --check",
    )


def check_service(situation: Situation) -> Finding:
    """Compare the service's file with what would be written now."""
    return _check(
        situation,
        situation.services(),
        drifted=Reason.SERVICE_DRIFTED,
        foreign=Reason.SERVICE_FOREIGN,
        none="no service is installed",
        fix="companion service install",
    )


def _check(
    situation: Situation,
    found: Sequence[Tended],
    *,
    drifted: Reason,
    foreign: Reason,
    none: str,
    fix: str,
) -> Finding:
    if not found:
        return skipped(Reason.NOT_APPLICABLE, none)
    strange = [each for each in found if each.state == "foreign"]
    off = [each for each in found if each.state == "drift"]
    if off and situation.repair:
        for each in off:
            each.mend()
    if strange:
        return broken(foreign, _told(strange))
    if off and situation.repair:
        return repaired(drifted, _told(off))
    if off:
        return broken(drifted, _told(off), fix=fix)
    return fine(", ".join(each.name for each in found))


def _told(found: Sequence[Tended]) -> str:
    return "; ".join(": ".join(filter(None, (each.name, each.detail))) for each in found)


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.STATE, needs=(ACCESS,))
    return (
        check(id="clients", title="connected programs", run=check_clients),
        # A manager's own program is asked, which has a deadline of its own.
        check(id="service", title="service", run=check_service, seconds=None),
    )
