"""Rules for this file: what a row of the doctor says, and what all rows together mean.

Pure; imports only the reasons. Every row that is not fine has a reason. A reason whose culprit
the table below does not list counts as a broken rule.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from companion_core.errors import REASONS, Culprit, Reason

__all__ = [
    "BROKEN",
    "LACKING",
    "Finding",
    "Judgement",
    "Row",
    "Section",
    "Status",
    "broken",
    "fine",
    "is_broken",
    "judge",
    "repaired",
    "skipped",
]


class Status(enum.StrEnum):
    """The outcome of a check; `skip` also if something that it needs failed."""

    OK = "ok"
    FAIL = "fail"
    REPAIRED = "repaired"
    SKIP = "skip"


class Section(enum.StrEnum):
    """Where a row stands; the order is that of the report."""

    CONFIGURATION = "configuration"
    MACHINE = "machine"
    STATE = "state"
    PLUGINS = "plugins"
    MODEL = "model"
    COMPANION = "companion"
    RULES = "rules"


# The exit codes of `companion doctor`: a rule is broken, or the environment lacks something.
BROKEN: Final = 3
LACKING: Final = 4

# The culprit decides the exit code; a culprit that is not listed means a broken rule.
_EXIT_CODES: Final[Mapping[Culprit, int]] = MappingProxyType(
    {Culprit.ENVIRONMENT: LACKING, Culprit.CALLER: LACKING, Culprit.NOT_RUNNING: LACKING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found; made by `fine`, `broken`, `repaired` and `skipped`.

    Attributes:
        detail: for a person. It may name files, plugins and addresses that the person
            configured, never a secret, a digest or a prompt (I-15).
        fix: the one command that puts it right; "" if there is none.
        value: of a configuration key, as text.
        source: where the value comes from: default, file, environment or option.
    """

    status: Status
    reason: Reason = Reason.OK
    detail: str = ""
    fix: str = ""
    value: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report; `id` is stable and unique."""

    id: str
    title: str
    section: Section
    finding: Finding

    @property
    def status(self) -> Status:
        """The outcome of the check."""
        return self.finding.status

    @property
    def reason(self) -> Reason:
        """Why it is not ok; `Reason.OK` if it is."""
        return self.finding.reason

    @property
    def advice(self) -> str:
        """What to do, from the closed list; "" if there is nothing to do."""
        if self.status in {Status.OK, Status.REPAIRED}:
            return ""
        return REASONS[self.reason].advice

    def document(self) -> dict[str, Any]:
        """Return the row of the JSON report; every row has every key."""
        return {
            "id": self.id,
            "title": self.title,
            "section": self.section.value,
            "status": self.status.value,
            "reason": self.reason.value,
            "advice": self.advice,
            "fix": self.finding.fix,
            "detail": self.finding.detail,
            "value": self.finding.value,
            "source": self.finding.source,
        }


def fine(detail: str = "") -> Finding:
    """Return the finding that all is well."""
    return Finding(status=Status.OK, detail=detail)


def broken(reason: Reason, detail: str = "", *, fix: str = "") -> Finding:
    """Return the finding of a failure.

    A `reason` that means "fine" is a mistake of the check and becomes `internal_fault`. What the
    check was not allowed to ask the machine is not known to be broken: it is skipped.
    """
    if reason is Reason.EGRESS_REFUSED:
        return skipped(reason, detail, fix=fix)
    reason = Reason.INTERNAL_FAULT if REASONS[reason].culprit is Culprit.NOBODY else reason
    return Finding(status=Status.FAIL, reason=reason, detail=detail, fix=fix)


def repaired(reason: Reason, detail: str) -> Finding:
    """Return the finding that something was broken for `reason` and has been put right."""
    return replace(broken(reason, detail), status=Status.REPAIRED)


def skipped(reason: Reason, detail: str, *, fix: str = "") -> Finding:
    """Return the finding that something could not be checked, or need not be."""
    return Finding(status=Status.SKIP, reason=reason, detail=detail, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the rows mean together: the exit code, and the reason that explains it."""

    exit_code: int
    reason: Reason


def is_broken(reason: Reason) -> bool:
    """Tell whether this reason breaks a rule; else the environment lacks something."""
    return _exit_code(reason) == BROKEN


def judge(rows: Iterable[Row]) -> Judgement:
    """Return the worst of the rows: a broken rule before a lack, the first of each kind."""
    failed = [row.reason for row in rows if row.status is Status.FAIL]
    for exit_code in (BROKEN, LACKING):
        for reason in failed:
            if _exit_code(reason) == exit_code:
                return Judgement(exit_code=exit_code, reason=reason)
    return Judgement(exit_code=0, reason=Reason.OK)


def _exit_code(reason: Reason) -> int:
    return _EXIT_CODES.get(REASONS[reason].culprit, BROKEN)
