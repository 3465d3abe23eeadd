"""A line of the log, written and read; `Record` and `parse_record`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.errors import Reason
from companion_core.serving.record import Record, parse_record

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            Record(at=AT, event="runtime_ended", reason=Reason.RUNTIME_EXITED),
            "2026-01-02T03:04:05Z companion: runtime_ended runtime_exited",
        ),
        (
            Record(at=AT, event="step", step="model"),
            "2026-01-02T03:04:05Z companion: step model",
        ),
        (Record(at=AT, event="stopped"), "2026-01-02T03:04:05Z companion: stopped"),
        (
            Record(at=AT, event="refused", reason=Reason.RATE_LIMITED, client="zed", count=12),
            "2026-01-02T03:04:05Z companion: refused rate_limited client=zed count=12",
        ),
    ],
    ids=["reason", "step", "plain", "refused"],
)
def test_a_line_says_what_it_was_written_from(record: Record, line: str) -> None:
    assert record.line() == line
    assert parse_record(line) == record


def test_times_are_of_no_place() -> None:
    there = AT.astimezone(timezone(timedelta(hours=5)))
    assert Record(at=there, event="stopped").line().startswith("2026-01-02T03:04:05Z ")


def test_the_document_names_what_is_known() -> None:
    record = Record(at=AT, event="refused", reason=Reason.RATE_LIMITED, client="zed", count=12)
    assert record.document() == {
        "at": "2026-01-02T03:04:05Z",
        "event": "refused",
        "reason": "rate_limited",
        "client": "zed",
        "count": 12,
    }
    assert Record(at=AT, event="stopped").document() == {
        "at": "2026-01-02T03:04:05Z",
        "event": "stopped",
        "reason": "ok",
    }


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        "companion: keychain_locked: unlock it",
        "2026-13-02T03:04:05Z companion: stopped",
        "2026-01-02T03:04:05Z companion: ended reason_of_tomorrow",
        "2026-01-02T03:04:05Z companion: refused rate_limited client=A B",
        "2026-01-02T03:04:05Z companion: stopped\n",
        None,
        7,
    ],
)
def test_any_other_text_is_no_record(line: Any) -> None:
    assert parse_record(line) is None


@given(st.text() | st.from_regex(r"\A[0-9T:Z-]{20} companion: [a-z_ =0-9]*\Z"))
def test_any_text_is_read_or_not(line: str) -> None:
    record = parse_record(line)
    assert record is None or parse_record(record.line()) == record
