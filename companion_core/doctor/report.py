"""The report: all checks in order, the JSON document, and the lines for a person."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from companion_core import __version__
from companion_core.doctor import (
    configuration,
    invariants,
    leftovers,
    machine,
    model,
    plugins,
    remembered,
    running,
    state,
    tended,
)
from companion_core.doctor.checks import Check, Situation, run_checks
from companion_core.doctor.findings import Judgement, Row, Section, Status, judge
from companion_core.errors import REASONS
from companion_core.system.harmless_text import harmless

__all__ = ["CHECKS", "Report", "examine"]

# Each check stands after those it needs; the report orders the rows by section.
CHECKS: Final[tuple[Check, ...]] = (
    *configuration.checks(),
    *state.checks(),
    *leftovers.checks(),
    *machine.checks(),
    *remembered.checks(),
    *plugins.checks(),
    *model.checks(),
    state.room(),
    *tended.checks(),
    *running.checks(),
    *invariants.checks(),
)

LINE_WIDTH: Final = 100
_STATUS_WIDTH: Final = 9
_NARROWEST: Final = 30

Style = Callable[[str, Status], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        rows: in the order of the sections.
        judgement: what they mean together.
        failures: show those that failed or were repaired alone; all are counted.
    """

    rows: Sequence[Row]
    judgement: Judgement
    failures: bool = False

    @property
    def shown(self) -> Sequence[Row]:
        """The rows that a person or a program gets to see."""
        if not self.failures:
            return self.rows
        return [row for row in self.rows if row.status in {Status.FAIL, Status.REPAIRED}]

    @property
    def advice(self) -> str:
        """What to do about the worst row; "" if there is nothing to do."""
        return "" if self.judgement.exit_code == 0 else REASONS[self.judgement.reason].advice

    def document(self) -> dict[str, Any]:
        """Return what `companion doctor --json` prints."""
        counted = Counter(row.status for row in self.rows)
        return {
            "ok": self.judgement.exit_code == 0,
            "reason": self.judgement.reason.value,
            "advice": self.advice,
            "version": __version__,
            "counts": {status.value: counted[status] for status in Status},
            "rows": [row.document() for row in self.shown],
        }

    def lines(
        self, style: Style = lambda text, _status: text, *, width: int = LINE_WIDTH
    ) -> Iterator[str]:
        """Yield the same facts for a person, section by section.

        Args:
            style: colours a status; the default leaves it plain.
            width: of a line, in characters.
        """
        for section, rows in itertools.groupby(self.shown, key=lambda row: row.section):
            yield section.value
            groups = list(_grouped(list(rows)))
            indent = _STATUS_WIDTH + max(len(_name(group)) for group in groups) + 4
            for group in groups:
                yield from _lines_of(group, style, indent, width)
            yield ""
        counted = Counter(row.status for row in self.rows)
        yield ", ".join(f"{counted[status]} {status}" for status in Status if counted[status])


def _grouped(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Group neighbouring rows that were skipped for the same lack; any other row stands alone."""

    def alike(row: Row) -> tuple[object, ...]:
        lacking = row.status is Status.SKIP and row.finding.detail.startswith("needs ")
        return (row.reason, row.finding.detail) if lacking else (row.id,)

    for _, group in itertools.groupby(rows, key=alike):
        yield list(group)


def _name(group: Sequence[Row]) -> str:
    row = group[0]
    if len(group) > 1:
        return f"{len(group)} checks"
    return row.title if row.section is not Section.RULES else f"{row.id} {row.title}"


def _lines_of(group: Sequence[Row], style: Style, indent: int, width: int) -> Iterator[str]:
    row, finding = group[0], group[0].finding
    reason = "" if row.status is Status.OK else row.reason.value
    source = f"({finding.source})" if finding.source else ""
    said = ": ".join(filter(None, [reason, finding.detail]))
    text = harmless(" ".join(filter(None, [finding.value, source, said])))
    first, *more = _wrap(text, width - indent) or [""]
    status = style(f"{row.status.value:{_STATUS_WIDTH}}", row.status)
    yield f"  {status}{harmless(_name(group)):{indent - _STATUS_WIDTH - 2}}{first}".rstrip()
    if row.status is Status.FAIL:
        more += (
            [f"-> {harmless(finding.fix)}"]
            if finding.fix
            else _wrap(f"-> {row.advice}", width - indent)
        )
    for line in more:
        yield " " * indent + line


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, _NARROWEST), break_on_hyphens=False)


def examine(
    situation: Situation, *, on_check: Callable[[Check], object] = lambda _check: None
) -> Report:
    """Run every check.

    Raises:
        KeyboardInterrupt: nothing that was started is left running.
    """
    rows = run_checks(CHECKS, situation, on_check=on_check)
    return Report(rows=rows, judgement=judge(rows))
