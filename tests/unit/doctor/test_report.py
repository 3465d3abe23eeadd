"""The report: a document whose keys scripts may rely on, and the same facts as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doctor_parts import make_row

from companion_core.doctor.findings import Section, Status, broken, fine, judge, repaired, skipped
from companion_core.doctor.report import Report
from companion_core.errors import Reason

pytestmark = pytest.mark.unit


def test_what_a_shut_doorway_refuses_is_skipped_and_not_at_fault():
    assert broken(Reason.EGRESS_REFUSED, "the manifest").status is Status.SKIP


ROWS = [
    make_row("good", fine("as it should be")),
    make_row("bad", broken(Reason.RUNTIME_CHANGED, "it changed", fix="companion fix")),
    make_row("worse", broken(Reason.KEYCHAIN_LOCKED)),
    make_row("closed", repaired(Reason.STATE_PATH_UNSAFE, "closed to others")),
    make_row("a", skipped(Reason.NOT_RUNNING, "needs companion")),
    make_row("b", skipped(Reason.NOT_RUNNING, "needs companion")),
    make_row("I-01", fine("seen"), Section.RULES),
]


def lines(**how):
    return list(Report(rows=ROWS, judgement=judge(ROWS)).lines(**how))


def test_the_text_has_the_same_facts():
    text = "\n".join(lines())
    for fact in (
        "good", "as it should be", "runtime_changed: it changed", "-> companion fix",
        "keychain_locked", "state_path_unsafe: closed to others", "2 checks", "I-01",
        "2 ok, 2 fail, 1 repaired, 2 skip",
    ):  # fmt: skip
        assert fact in text, fact
    assert "-> " + ROWS[2].advice.split(" ", maxsplit=1)[0] in text, (
        "advice where there is no command"
    )


def test_the_columns_are_aligned_and_no_line_is_too_long():
    text = lines(width=60)
    assert max(map(len, text)) <= 60
    starts = {
        line.index(word)
        for line in text
        for word in ("as it should", "-> companion")
        if word in line
    }
    assert len(starts) == 1


def test_a_status_is_painted_and_nothing_else_is():
    painted = "\n".join(lines(style=lambda text, status: f"<{status}>{text}"))
    assert painted.count("<fail>") == 2
    assert painted.count("<") == painted.count(">fail") + painted.count(">ok") + painted.count(
        ">repaired"
    ) + painted.count(">skip")


def test_what_a_plugins_metadata_says_moves_no_cursor():
    hostile = "a\x1b[2Jb\x07\u202e"
    finding = broken(Reason.PLUGIN_UNTRUSTED, hostile, fix=f"companion plugins trust {hostile}")
    rows = [make_row("plugin", finding)]
    (row,) = [replace(row, title=hostile) for row in rows]
    text = "\n".join(Report(rows=[row], judgement=judge([row])).lines())
    assert not any(sign in text for sign in "\x1b\x07\u202e")
    assert "a\N{REPLACEMENT CHARACTER}[2Jb" in text


def test_only_what_failed_or_was_repaired_is_shown_and_all_is_counted():
    report = Report(rows=ROWS, judgement=judge(ROWS), failures=True)
    document = report.document()
    assert [row["id"] for row in document["rows"]] == ["bad", "worse", "closed"]
    assert document["counts"] == {"ok": 2, "fail": 2, "repaired": 1, "skip": 2}
    text = "\n".join(report.lines())
    assert "as it should be" not in text
    assert "2 ok, 2 fail, 1 repaired, 2 skip" in text
    fine_rows = [make_row("good", fine())]
    report = Report(rows=fine_rows, judgement=judge(fine_rows), failures=True)
    assert list(report.lines()) == ["1 ok"]
