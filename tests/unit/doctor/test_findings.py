"""What rows mean together: a table of exit codes; no row hides a failure."""

from __future__ import annotations

import pytest
from doctor_parts import make_row
from hypothesis import given
from hypothesis import strategies as st

from companion_core.doctor.findings import (
    BROKEN,
    LACKING,
    Status,
    broken,
    fine,
    is_broken,
    judge,
    repaired,
    skipped,
)
from companion_core.errors import REASONS, Culprit, Reason

pytestmark = pytest.mark.unit

FINDINGS = st.builds(
    lambda make, reason: make(reason, "detail"),
    st.sampled_from([broken, repaired, skipped]),
    st.sampled_from(Reason),
) | st.just(fine("detail"))


@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [
        (Reason.RUNTIME_CHANGED, BROKEN),
        (Reason.STATE_PATH_UNSAFE, BROKEN),
        (Reason.PLUGIN_IMPORT_FAILED, BROKEN),
        (Reason.BACKEND_OPEN, BROKEN),
        (Reason.MANIFEST_EXPIRED, BROKEN),
        (Reason.KEYCHAIN_UNTRUSTED, BROKEN),
        (Reason.INTERNAL_FAULT, BROKEN),
        (Reason.KEYCHAIN_LOCKED, LACKING),
        (Reason.RUNTIME_NOT_FOUND, LACKING),
        (Reason.DISK_UNAVAILABLE, LACKING),
        (Reason.MANIFEST_UNAVAILABLE, LACKING),
        (Reason.CONFIGURATION_INVALID, LACKING),
        (Reason.CHECK_TIMEOUT, LACKING),
    ],
)
def test_who_has_to_act_decides_the_exit_code(reason, exit_code):
    judgement = judge([make_row("a", fine()), make_row("b", broken(reason))])
    assert (judgement.exit_code, judgement.reason) == (exit_code, reason)
    assert is_broken(reason) == (exit_code == BROKEN)


def test_the_exit_codes_are_those_of_the_contract():
    assert (BROKEN, LACKING) == (3, 4)


def test_a_broken_rule_comes_before_a_lack_and_the_first_counts():
    rows = [
        make_row("a", broken(Reason.KEYCHAIN_LOCKED)),
        make_row("b", broken(Reason.RUNTIME_CHANGED)),
        make_row("c", broken(Reason.BACKEND_OPEN)),
    ]
    assert judge(rows).reason is Reason.RUNTIME_CHANGED
    assert judge(rows[:1]).reason is Reason.KEYCHAIN_LOCKED


def test_what_was_repaired_or_skipped_is_no_failure():
    rows = [
        make_row("a", repaired(Reason.STATE_PATH_UNSAFE, "closed")),
        make_row("b", skipped(Reason.NOT_RUNNING, "nothing runs")),
    ]
    assert (judge(rows).exit_code, judge(rows).reason) == (0, Reason.OK)
    assert judge([]).exit_code == 0


@pytest.mark.parametrize("reason", [r for r in Reason if REASONS[r].culprit is Culprit.NOBODY])
def test_no_failure_has_the_reason_ok(reason):
    assert broken(reason).reason is Reason.INTERNAL_FAULT


@given(st.lists(FINDINGS, max_size=8))
def test_the_exit_code_is_zero_exactly_when_nothing_failed(findings):
    rows = [make_row(str(number), finding) for number, finding in enumerate(findings)]
    failed = [finding for finding in findings if finding.status is Status.FAIL]
    judgement = judge(rows)
    assert (judgement.exit_code == 0) == (not failed)
    assert judgement.exit_code in {0, BROKEN, LACKING}
    assert (judgement.reason is Reason.OK) == (not failed)


@given(FINDINGS)
def test_a_row_that_is_not_fine_says_what_to_do_and_every_row_has_every_key(finding):
    document = make_row("a", finding).document()
    assert list(document) == [
        "id", "title", "section", "status", "reason", "advice", "fix", "detail", "value", "source",
    ]  # fmt: skip
    if finding.status in {Status.FAIL, Status.SKIP}:
        assert document["advice"]
    else:
        assert document["advice"] == ""
