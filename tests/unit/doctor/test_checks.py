"""A check that raises, hangs, exits or lacks something costs its own row alone."""

from __future__ import annotations

import threading

import pytest
from doctor_parts import make_situation

from companion_core.doctor.checks import Check, run_checks
from companion_core.doctor.findings import Section, Status, broken, fine, repaired, skipped
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, Refused

pytestmark = pytest.mark.unit


def check(id_, run, **more):
    return Check(id=id_, title=id_, section=more.pop("section", Section.MACHINE), run=run, **more)


def raising(error):
    def run(_situation):
        raise error

    return run


@pytest.mark.parametrize("seconds", [5, None])
@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (Refused(Reason.STATE_PATH_UNSAFE, "x is a link"), "state_path_unsafe", "x is a link"),
        (EnvironmentUnavailable(Reason.KEYCHAIN_LOCKED), "keychain_locked", ""),
        (PluginFault(Reason.PLUGIN_CALL_FAILED, "lamp"), "plugin_call_failed", "lamp"),
        (PermissionError(13, "Permission denied"), "disk_unavailable", "Permission denied"),
        (RuntimeError("a secret"), "internal_fault", "RuntimeError"),
        (SystemExit("a secret"), "internal_fault", "SystemExit"),
    ],
)
def test_a_check_that_raises_is_a_row_and_the_next_one_runs(
    tmp_path, error, reason, detail, seconds
):
    rows = run_checks(
        [
            check("first", raising(error), seconds=seconds),
            check("second", lambda _situation: fine("well")),
        ],
        make_situation(tmp_path),
    )
    assert [(row.id, row.status) for row in rows] == [
        ("first", Status.FAIL),
        ("second", Status.OK),
    ]
    assert (rows[0].reason.value, rows[0].finding.detail) == (reason, detail)


def test_a_check_that_hangs_is_a_row_and_is_told_to_stop(tmp_path):
    told = threading.Event()

    def hang(situation):
        cancelled = situation.cancelled
        if cancelled.wait(60):
            told.set()
        return fine()

    rows = run_checks(
        [check("hangs", hang, seconds=0.05), check("next", lambda _situation: fine())],
        make_situation(tmp_path),
    )
    assert rows[0].reason is Reason.CHECK_TIMEOUT
    assert rows[1].status is Status.OK
    assert told.wait(60)


@pytest.mark.parametrize("seconds", [5, None])
def test_an_interrupt_is_no_row(tmp_path, seconds):
    with pytest.raises(KeyboardInterrupt):
        run_checks(
            [check("a", raising(KeyboardInterrupt()), seconds=seconds)], make_situation(tmp_path)
        )


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        (broken(Reason.CONFIGURATION_INVALID, "line 3"), Status.SKIP, "configuration_invalid"),
        (skipped(Reason.NOT_RUNNING, "nothing runs"), Status.SKIP, "not_running"),
        (repaired(Reason.STALE_STATE, "removed"), Status.OK, "ok"),
        (fine(), Status.OK, "ok"),
    ],
)
def test_without_what_it_needs_a_check_is_skipped_and_says_what_that_is(
    tmp_path, first, status, reason
):
    rows = run_checks(
        [check("first", lambda _: first), check("second", lambda _: fine(), needs=("first",))],
        make_situation(tmp_path),
    )
    assert (rows[1].status, rows[1].reason.value) == (status, reason)
    if status is Status.SKIP:
        assert rows[1].finding.detail == "needs first"


def test_a_check_whose_need_no_row_fills_is_skipped(tmp_path):
    rows = run_checks([check("a", lambda _: fine(), needs=("none",))], make_situation(tmp_path))
    assert rows[0].status is Status.SKIP


def test_rows_stand_in_the_order_of_the_sections_whatever_ran_first(tmp_path):
    def several(_situation):
        return [check(name, fine).row(fine()) for name in ("b", "c")]

    rows = run_checks(
        [
            check("rule", lambda _: fine(), section=Section.RULES),
            check("several", several),
            check("file", lambda _: fine(), section=Section.CONFIGURATION),
        ],
        make_situation(tmp_path),
    )
    assert [row.id for row in rows] == ["file", "b", "c", "rule"]


def test_each_check_is_announced_before_it_runs(tmp_path):
    seen = []
    checks = [check("a", lambda _: seen.append("ran") or fine())]
    run_checks(checks, make_situation(tmp_path), on_check=lambda each: seen.append(each.id))
    assert seen == ["a", "ran"]
