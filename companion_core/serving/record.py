"""Rules for this file: one line of the companion's log, written and read in one place.

    2026-01-02T03:04:05Z companion: runtime_ended runtime_exited
    2026-01-02T03:04:06Z companion: step runtime
    2026-01-02T03:04:10Z companion: refused rate_limited client=editor count=3

A line has names from closed lists, a client's name and numbers, and no other text: no model's name,
no path and no text of another program (I-15). No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from companion_core.errors import Reason

__all__ = ["Record", "parse_record"]

_STEP: Final = "step"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_LINE: Final = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) companion: (?P<event>[a-z_]+)(?: (?P<word>[a-z_]+))?"
    r"(?: client=(?P<client>[a-z0-9_-]{1,32}))?(?: count=(?P<count>[0-9]{1,12}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened.

    Attributes:
        at: when, to the second.
        event: the kind of an event, `ended` or `refused`.
        reason: why; `ok` where nothing went wrong.
        step: of the event `step`.
        client: whose requests were refused; "" for clients without a key of their own.
        count: how many.
    """

    at: datetime
    event: str
    reason: Reason = Reason.OK
    step: str = ""
    client: str = ""
    count: int = 0

    def line(self) -> str:
        """Return it as a line of the log."""
        reason = "" if self.reason is Reason.OK else self.reason.value
        words = (
            f"{self.at.astimezone(UTC):{_TIME}} companion: {self.event}",
            self.step or reason,
            f"client={self.client}" if self.client else "",
            f"count={self.count}" if self.count else "",
        )
        return " ".join(filter(None, words))

    def document(self) -> dict[str, Any]:
        """Return it for `companion logs --json`."""
        more = {"step": self.step, "client": self.client, "count": self.count}
        return {
            "at": f"{self.at.astimezone(UTC):{_TIME}}",
            "event": self.event,
            "reason": self.reason.value,
            **{name: value for name, value in more.items() if value},
        }


def parse_record(line: object) -> Record | None:
    """Return what a line of the log says; None for any other text."""
    found = _LINE.fullmatch(line) if isinstance(line, str) else None
    if found is None:
        return None
    event, word = found["event"], found["word"] or ""
    try:
        at = datetime.strptime(found["at"], _TIME).replace(tzinfo=UTC)
        reason = Reason(word) if word and event != _STEP else Reason.OK
    except ValueError:  # no such day, or a reason of another release
        return None
    return Record(
        at=at,
        event=event,
        reason=reason,
        step=word if event == _STEP else "",
        client=found["client"] or "",
        count=int(found["count"] or 0),
    )
