"""What a running companion's status says, judged; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_parts import (
    ANSWERS,
    STATUS,
    make_config,
    make_row,
    make_situation,
    make_survey,
    situation_of,
)

from companion_core import __version__
from companion_core.doctor import running
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status, fine, skipped
from companion_core.errors import CompanionError, Reason

pytestmark = pytest.mark.unit


def test_where_nothing_runs_every_row_says_so(tmp_path):
    situation = make_situation(tmp_path)
    situation.rows["companion"] = make_row("companion", skipped(Reason.NOT_RUNNING, "nothing runs"))
    rows = [row for row in run_checks(running.checks(), situation) if row.id != "companion"]
    assert rows
    assert {(row.status, row.reason) for row in rows} == {(Status.SKIP, Reason.NOT_RUNNING)}


def test_a_companion_that_only_starts_breaks_no_check(tmp_path):
    situation = situation_of(
        tmp_path,
        available=False,
        reason="not_verified",
        lifecycle="stopped",
        gateway=None,
        runtime=None,
        model={"id": "tiny", "verified": False},
        admission=None,
        resources=None,
        last_health_ok_seconds_ago=None,
    )
    situation.rows["companion"] = make_row("companion", fine())
    rows = {row.id: row for row in run_checks(running.checks(), situation)}
    assert rows["available"].reason is Reason.NOT_VERIFIED
    for name in (
        "running-runtime", "gateway", "admission", "resources", "runtime-environment",
        "runtime-sockets", "gateway-sockets", "guard",
    ):  # fmt: skip
        assert (rows[name].status, rows[name].reason) == (Status.SKIP, Reason.NOT_READY)


@pytest.mark.parametrize("version", [None, "0.0.1"])
def test_a_companion_that_outlived_its_installation_is_told(tmp_path, version):
    told = running.check_available(situation_of(tmp_path, version=version)).detail
    assert "companion down, companion up" in told
    assert (version or "an earlier release") in told
    same = running.check_available(situation_of(tmp_path, version=__version__)).detail
    assert "companion down" not in same


@pytest.mark.parametrize(
    ("check", "changes", "reason"),
    [
        (running.check_available, {}, "ok"),
        (running.check_available, {"available": False, "reason": "health_stale"}, "health_stale"),
        (running.check_verified, {}, "ok"),
        (running.check_verified, {"model": {"id": "tiny", "verified": False}}, "not_verified"),
        (running.check_admission, {}, "ok"),
        (running.check_runtime, {}, "ok"),
        (running.check_runtime, {"runtime": None}, "not_ready"),
        (running.check_gateway, {}, "ok"),
        (running.check_gateway, {"gateway": None}, "not_ready"),
        (
            running.check_admission,
            {"admission": {**STATUS["admission"], "queued": 17}},
            "malformed_admission_state",
        ),
        (running.check_resources, {}, "ok"),
        (running.check_resources, {"resources": None}, "probe_failed"),
        (
            running.check_resources,
            {"resources": {**STATUS["resources"], "ram_bytes": 10**15}},
            "ram_over_limit",
        ),
    ],
)
def test_what_its_status_says_is_judged(tmp_path, check, changes, reason):
    situation = situation_of(tmp_path, **changes)
    situation.config = make_config(limits={"max_ram_bytes": 10**9})
    assert check(situation).reason.value == reason


@pytest.mark.parametrize("changes", [{"plugin": "other"}, None])
def test_without_its_plugins_declaration_no_variable_is_judged(tmp_path, changes):
    situation = situation_of(tmp_path)
    answers = None if changes is None else {"runtime": {**ANSWERS["runtime"], **changes}}
    situation.plugins = make_survey(answers=answers)
    found = running.check_runtime_environment(situation)
    assert (found.status, found.reason) == (Status.SKIP, Reason.PROVIDER_MISSING)


@pytest.mark.security
def test_a_token_in_a_log_is_told_and_never_shown(tmp_path, monkeypatch):
    situation = situation_of(tmp_path)
    situation.paths.prepare()
    situation.running = object()
    log: Path = situation.paths.logs / "runtime.log"
    log.write_text("nothing to see")
    # In place of a running companion, which would have a token of its own.
    monkeypatch.setattr(running, "ask", lambda *_: {"token": "planted-token"})
    found = running.check_logs(situation)
    assert found.status is Status.OK
    assert "last MiB" in found.detail
    log.write_text("x" * 3_000_000 + "planted-token\n")
    found = running.check_logs(situation)
    assert found.status is Status.FAIL
    assert "runtime.log" in found.detail
    assert "planted-token" not in found.detail

    def refuse(*_: object) -> None:
        raise CompanionError(Reason.NOT_READY)

    monkeypatch.setattr(running, "ask", refuse)
    assert running.check_logs(situation).status is Status.SKIP
