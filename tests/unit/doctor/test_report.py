"""The report: a document whose keys scripts may rely on, and the same facts as text."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from doctor_parts import make_row, make_situation, make_survey, plugin

from companion_core.config.reader import SECTIONS
from companion_core.doctor import examine
from companion_core.doctor.findings import (
    Section,
    Status,
    broken,
    fine,
    judge,
    repaired,
    skipped,
)
from companion_core.doctor.report import CHECKS, Report
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

# What scripts match on; a row may be added, none of these goes away or changes its name.
STABLE = {
    "configuration", "option.config-file", "option.state-dir", "option.instance",
    "option.plugins-allowed",
    "python", "platform", "packages", "extra.uvloop", "clock", "temporary", "memory", "ceilings",
    "gpu", "loopback-v4", "loopback-v6", "port", "proxies", "certificates", "isolation.chosen",
    "state-access", "state-folder", "state-file", "processes", "downloads", "trust-store", "room",
    "plugins", "sides", "keychain", "runtime", "binary",
    "manifest", "models",
    "companion", "available", "verified", "running-runtime", "gateway", "admission", "resources",
    "runtime-environment", "runtime-sockets", "gateway-sockets", "guard", "process", "logs",
    *(f"I-{number:02}" for number in range(1, 19)),
    *(f"config.{name}.{key.name}" for name, s in SECTIONS.items() for key in dataclasses.fields(s)),
}  # fmt: skip

ROW_KEYS = [
    "id", "title", "section", "status", "reason", "advice", "fix", "detail", "value", "source",
]  # fmt: skip


def survey():
    return make_survey(plugin("lamp", "plugin_import_failed"))


def test_the_document_keeps_its_keys_whatever_is_wrong(tmp_path):
    report = examine(make_situation(tmp_path, survey=survey))
    document = json.loads(json.dumps(report.document()))
    assert list(document) == ["ok", "reason", "advice", "version", "counts", "rows"]
    assert set(document["counts"]) == {"ok", "fail", "repaired", "skip"}
    assert all(list(row) == ROW_KEYS for row in document["rows"])
    ids = [row["id"] for row in document["rows"]]
    assert len(ids) == len(set(ids))
    assert set(ids) >= STABLE | {"plugin.lamp"}
    assert {row["status"] for row in document["rows"]} <= set(Status)
    assert {row["section"] for row in document["rows"]} == set(Section)
    assert document["ok"] is False
    assert document["reason"] in set(Reason)
    assert document["advice"]


def test_it_counts_what_it_has(tmp_path):
    document = examine(make_situation(tmp_path)).document()
    counted = Counter(row["status"] for row in document["rows"])
    assert document["counts"] == {status.value: counted[status] for status in Status}


def test_with_a_shut_doorway_every_row_is_still_there(tmp_path):
    report = examine(make_situation(tmp_path, egress=RefusingEgress()))
    ids = {row.id for row in report.rows}
    assert STABLE - ids <= {"isolation.chosen"}


def test_what_a_shut_doorway_refuses_is_skipped_and_not_at_fault():
    assert broken(Reason.EGRESS_REFUSED, "the manifest").status is Status.SKIP


def test_nothing_is_changed_without_repair(tmp_path):
    examine(make_situation(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_check_is_announced_twice_and_all_are(tmp_path):
    seen: list[str] = []
    examine(make_situation(tmp_path), on_check=lambda check: seen.append(check.id))
    assert seen == [check.id for check in CHECKS]
    assert len(seen) == len(set(seen))


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
