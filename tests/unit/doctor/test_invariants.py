"""Each invariant has a row with evidence, and a rule that gave way would be noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doctor_parts import make_row

from companion_core.decisions import guard
from companion_core.decisions.verdict import OK
from companion_core.doctor import invariants, questions
from companion_core.doctor import self_tests as probes
from companion_core.doctor.configuration import OPEN_BACKEND
from companion_core.doctor.findings import Status, broken, fine, repaired, skipped
from companion_core.doctor.invariants import INVARIANTS, judge_invariant
from companion_core.doctor.report import CHECKS
from companion_core.doctor.self_tests import PROBES
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
BY_ID = {invariant.id: invariant for invariant in INVARIANTS}


def documented() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (I-\d\d) \|", text, re.MULTILINE)


def test_every_invariant_of_the_architecture_has_a_row():
    assert documented() == [f"I-{number:02}" for number in range(1, 19)]
    assert [invariant.id for invariant in INVARIANTS] == documented()
    assert [check.id for check in CHECKS if check.id.startswith("I-")] == documented()
    assert list(PROBES) == documented()


def test_every_invariant_asks_or_looks_at_something_that_exists():
    rows = {check.id for check in CHECKS} | {OPEN_BACKEND}
    for invariant in INVARIANTS:
        assert invariant.evidence, invariant.id
        assert set(invariant.evidence) <= rows, invariant.id


@pytest.mark.parametrize(
    ("name", "probe"),
    [(f"{id_}: {probe.who}", probe) for id_, rows in PROBES.items() for probe in rows],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rule_answers_as_it_must(name, probe):
    assert probe.answer() is probe.expected, name


def test_the_same_questions_with_nothing_hostile_are_answered_with_yes():
    allowed = {id_ for id_, rows in PROBES.items() for row in rows if row.expected is Reason.OK}
    assert {"I-03", "I-04", "I-05", "I-06", "I-09", "I-10", "I-11", "I-12"} <= allowed


def test_a_guard_that_lets_everybody_in_is_seen(monkeypatch):
    assert judge_invariant(BY_ID["I-10"], {}).status is Status.OK
    # The rule that gives way is planted in its place.
    monkeypatch.setattr(questions, "verify_request", lambda *_: OK)
    for id_ in ("I-10", "I-16", "I-17"):
        found = judge_invariant(BY_ID[id_], {})
        assert (found.status, found.reason) == (Status.FAIL, Reason.INTERNAL_FAULT), id_


@pytest.mark.parametrize(
    ("id_", "place", "name"),
    [
        ("I-01", questions, "VerifiedModel"),
        ("I-02", probes, "verify_manifest"),
        ("I-02", probes, "check_manifest_origin"),
        ("I-03", probes, "check_source_url"),
        ("I-05", probes, "prove_binary"),
        ("I-06", probes, "check_env_name"),
        ("I-06", questions, "check_environment"),
        ("I-07", questions, "check_listeners"),
        ("I-09", probes, "transition"),
        ("I-09", questions, "evaluate_availability"),
        ("I-11", probes, "decide_arrival"),
        ("I-12", probes, "evaluate_resources"),
        ("I-13", probes, "require_account"),
        ("I-13", probes, "require_secret"),
        ("I-16", probes, "choose_keychain"),
        ("I-16", probes, "choose_tier"),
        ("I-17", probes, "loopback_hosts"),
    ],
)
def test_a_rule_that_gives_way_is_seen(monkeypatch, id_, place, name):
    assert judge_invariant(BY_ID[id_], {}).status is Status.OK
    # The rule that gives way is planted in its place.
    monkeypatch.setattr(place, name, lambda *_, **__: OK)
    found = judge_invariant(BY_ID[id_], {})
    assert (found.status, found.reason) == (Status.FAIL, Reason.INTERNAL_FAULT)


def test_a_row_that_contradicts_an_invariant_breaks_it():
    rows = {"binary": make_row("binary", broken(Reason.RUNTIME_CHANGED, fix="fix it"))}
    found = judge_invariant(BY_ID["I-05"], rows)
    assert (found.status, found.reason, found.fix) == (
        Status.FAIL,
        Reason.RUNTIME_CHANGED,
        "fix it",
    )
    assert "binary" in found.detail


def test_a_row_that_was_skipped_skips_its_invariant_and_is_named():
    rows = {"keychain": make_row("keychain", broken(Reason.KEYCHAIN_LOCKED))}
    found = judge_invariant(BY_ID["I-13"], rows)
    assert (found.status, found.reason) == (Status.SKIP, Reason.KEYCHAIN_LOCKED)
    assert "keychain" in found.detail


def test_a_runtime_that_outlived_its_companion_breaks_i_08():
    rows = {"processes": make_row("processes", broken(Reason.STALE_RUNTIME))}
    assert judge_invariant(BY_ID["I-08"], rows).status is Status.FAIL
    rows = {"processes": make_row("processes", broken(Reason.STALE_STATE))}
    assert judge_invariant(BY_ID["I-08"], rows).status is Status.SKIP


@pytest.mark.parametrize("finding", [fine(), repaired(Reason.STATE_PATH_UNSAFE, "closed")])
def test_the_row_says_what_showed_it(finding):
    rows = {
        "state-folder": make_row("state-folder", finding),
        "process": make_row("process", skipped(Reason.NOT_RUNNING, "needs companion")),
    }
    found = judge_invariant(BY_ID["I-18"], rows)
    assert found.status is Status.OK
    assert found.detail == "seen: state-folder; not looked at: process"


def test_an_invariant_without_evidence_is_not_fine():
    assert judge_invariant(BY_ID["I-18"], {}).status is Status.SKIP
    assert judge_invariant(BY_ID["I-08"], {}).status is Status.SKIP


def test_the_questions_reach_the_rules_that_the_companion_uses():
    assert questions.verify_request is guard.verify_request
    assert invariants.PROBES is probes.PROBES
