"""The report of a whole examination: a document whose keys scripts may rely on."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from doctor_parts import make_situation, make_survey, plugin

from companion_core.config.sections import SECTIONS
from companion_core.doctor import examine
from companion_core.doctor.findings import Section, Status
from companion_core.doctor.report import CHECKS
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason

pytestmark = pytest.mark.integration

# Scripts match on these: rows may be added, but none of these may go or change its name.
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


def test_the_counts_are_those_of_the_rows(tmp_path):
    document = examine(make_situation(tmp_path)).document()
    counted = Counter(row["status"] for row in document["rows"])
    assert document["counts"] == {status.value: counted[status] for status in Status}


def test_with_a_shut_doorway_every_row_is_still_there(tmp_path):
    report = examine(make_situation(tmp_path, egress=RefusingEgress()))
    ids = {row.id for row in report.rows}
    assert STABLE - ids <= {"isolation.chosen"}


def test_nothing_is_changed_without_repair(tmp_path):
    examine(make_situation(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_each_check_is_announced_once(tmp_path):
    seen: list[str] = []
    examine(make_situation(tmp_path), on_check=lambda check: seen.append(check.id))
    assert seen == [check.id for check in CHECKS]
    assert len(seen) == len(set(seen))
