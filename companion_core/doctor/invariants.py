"""Rules for this file: what each invariant's row says, from probes and from evidence.

An invariant fails if its rule answers a hostile probe wrongly, or if the evidence contradicts
it. It is skipped if its evidence could not be gathered. Else it is fine, and the row says what
showed it. Pure; the probes do not touch the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.configuration import OPEN_BACKEND
from companion_core.doctor.findings import (
    Finding,
    Row,
    Section,
    Status,
    broken,
    fine,
    is_broken,
    skipped,
)
from companion_core.doctor.self_tests import PROBES
from companion_core.errors import Reason

__all__ = ["INVARIANTS", "Invariant", "checks", "judge_invariant"]


@dataclass(frozen=True, slots=True)
class Invariant:
    """One row of the table.

    Attributes:
        title: what holds, in words.
        evidence: ids of the rows that show it on this machine.
        breaks: reasons of the evidence that break it although their culprit is the environment.
    """

    id: str
    title: str
    evidence: tuple[str, ...]
    breaks: frozenset[Reason] = frozenset()


INVARIANTS: Final = (
    Invariant("I-01", "a model runs only with evidence", ("models", "verified")),
    Invariant("I-02", "a signed, current manifest vouches for it", ("manifest",)),
    Invariant("I-03", "sources are https and on the list", ("manifest",)),
    Invariant("I-04", "bytes are capped, hashed, named last", ("models", "downloads")),
    Invariant("I-05", "the program is absolute and unchanged", ("binary",)),
    Invariant("I-06", "its environment is an allow-list", ("runtime-environment",)),
    Invariant("I-07", "only the gateway reaches the backend", (OPEN_BACKEND, "runtime-sockets")),
    Invariant(
        "I-08",
        "the whole tree dies with the companion",
        ("processes", "state-file"),
        frozenset({Reason.STALE_RUNTIME}),
    ),
    Invariant("I-09", "available means verified, ready, healthy", ("available",)),
    Invariant("I-10", "each request passes every check", ("guard",)),
    Invariant("I-11", "the queue is bounded and fair", ("admission",)),
    Invariant("I-12", "ceilings hold for the whole tree", ("memory", "resources")),
    Invariant("I-13", "a closed list of accounts in one proved keychain", ("keychain",)),
    Invariant("I-14", "runtime and authority are disjoint", ("sides",)),
    Invariant("I-15", "no secret in reasons and logs", ("logs",)),
    Invariant("I-16", "an empty set never means yes", ("trust-store",)),
    Invariant("I-17", "inference paths, loopback only, no CORS", ("gateway-sockets", "guard")),
    Invariant(
        "I-18",
        "state is the person's alone",
        ("state-access", "state-folder", "clock", "process", "trust-store"),
    ),
)


def judge_invariant(invariant: Invariant, rows: Mapping[str, Row]) -> Finding:
    """Return the finding that shows or breaks the invariant.

    Args:
        invariant: of the table.
        rows: the findings of earlier checks, by id.
    """
    probes = PROBES[invariant.id]
    for probe in probes:
        if probe.answer() is not probe.expected:
            return broken(Reason.INTERNAL_FAULT, f"{probe.who}: answered with {probe.answer()}")
    seen = [rows[id_] for id_ in invariant.evidence if id_ in rows]
    failed = [row for row in seen if row.status is Status.FAIL]
    for row in failed:
        if is_broken(row.reason) or row.reason in invariant.breaks:
            return broken(row.reason, f"see {row.id}", fix=row.finding.fix)
    if failed:
        return skipped(failed[0].reason, f"needs {', '.join(row.id for row in failed)}")
    shown = [row.id for row in seen if row.status is not Status.SKIP]
    if not probes and not shown:
        missing = seen[0].reason if seen else Reason.NOT_APPLICABLE
        return skipped(missing, f"needs {', '.join(invariant.evidence)}")
    return fine(_said(len(probes), shown, [row.id for row in seen if row.id not in shown]))


def _said(probes: int, shown: list[str], not_shown: list[str]) -> str:
    said = []
    if shown:
        said.append(f"seen: {', '.join(shown)}")
    if probes:
        said.append(f"the rule answered {probes} of {probes} questions rightly")
    if not_shown:
        said.append(f"not looked at: {', '.join(not_shown)}")
    return "; ".join(said)


def _run(invariant: Invariant, situation: Situation) -> Finding:
    return judge_invariant(invariant, situation.rows)


def checks() -> tuple[Check, ...]:
    """Return one check per invariant."""
    return tuple(
        Check(
            id=invariant.id,
            title=invariant.title,
            section=Section.RULES,
            run=partial(_run, invariant),
        )
        for invariant in INVARIANTS
    )
