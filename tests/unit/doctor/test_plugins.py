"""Rows of plugins and of the providers that were selected, from what a child reported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from doctor_parts import ANSWERS, make_config, make_situation, make_survey, plugin

from companion_core.doctor import plugins
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.errors import Reason

pytestmark = pytest.mark.unit


def look(tmp_path, *documents, config=None, **survey):
    situation = make_situation(tmp_path, survey=lambda: make_survey(*documents, **survey))
    situation.config = config
    return {row.id: row for row in run_checks(plugins.checks(), situation)}


def answers(side: str, **changes):
    return {**ANSWERS, side: {**ANSWERS[side], **changes}}


def test_a_sound_plugin_is_named_with_distribution_version_and_roles(tmp_path):
    row = look(tmp_path, plugin("lamp", selected_for=["spawn"]))["plugin.lamp"]
    assert row.status is Status.OK
    assert row.finding.detail == "companion-runtime-lamp 0.1.0, registered for spawn"


@pytest.mark.parametrize("reason", ["plugin_import_failed", "plugin_changed", "plugin_call_failed"])
def test_a_broken_plugin_costs_its_own_row_and_says_what_ends_it(tmp_path, reason):
    rows = look(tmp_path, plugin("lamp", reason, detail="what it did"), plugin("neighbour"))
    row = rows["plugin.lamp"]
    assert (row.status, row.reason.value) == (Status.FAIL, reason)
    for fact in ("companion-runtime-lamp", "0.1.0", "what it did"):
        assert fact in row.finding.detail
    assert row.finding.fix
    assert row.advice
    assert rows["plugin.neighbour"].status is Status.OK
    assert rows["plugins"].status is Status.OK


@pytest.mark.parametrize("reason", ["plugin_untrusted", "plugin_editable", "plugin_narrowed"])
def test_a_plugin_that_is_not_trusted_is_no_failure(tmp_path, reason):
    row = look(tmp_path, plugin("lamp", reason))["plugin.lamp"]
    assert (row.status, row.reason.value) == (Status.SKIP, reason)


def test_two_claims_on_one_name_are_two_rows(tmp_path):
    rows = look(
        tmp_path,
        plugin("twin", "plugin_duplicate", distribution="zoo-a"),
        plugin("twin", "plugin_duplicate", distribution="zoo-b"),
    )
    assert {"plugin.twin.zoo-a", "plugin.twin.zoo-b"} <= set(rows)


def test_a_store_that_cannot_be_read_is_told(tmp_path):
    rows = look(tmp_path, plugin("lamp"), reason=Reason.PLUGIN_STORE_MALFORMED)
    assert rows["plugins"].reason is Reason.PLUGIN_STORE_MALFORMED
    assert rows["plugin.lamp"].status is Status.OK


def test_a_distribution_on_both_sides_is_told(tmp_path):
    both = {"distribution": "zoo-amphibian"}
    rows = look(tmp_path, plugin("a", **both), plugin("b", side="authority", **both))
    assert (rows["sides"].status, rows["sides"].reason) == (
        Status.FAIL,
        Reason.PLUGIN_BOTH_SIDES,
    )
    assert "zoo-amphibian" in rows["sides"].finding.detail
    core = {"distribution": "companion-core", "core": True}
    rows = look(tmp_path, plugin("a", **core), plugin("b", side="authority", **core))
    assert rows["sides"].status is Status.OK


def test_a_proved_keychain_is_fine_and_says_what_it_is(tmp_path):
    row = look(tmp_path)["keychain"]
    assert row.status is Status.OK
    for fact in ("vault", "written, read and deleted", "session", "this device"):
        assert fact in row.finding.detail


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"reason": "keychain_locked"}, Status.FAIL, "keychain_locked"),
        ({"reason": "keychain_untrusted"}, Status.FAIL, "keychain_untrusted"),
        ({"proved": False}, Status.FAIL, "keychain_untrusted"),
        ({"reason": "provider_missing", "plugin": ""}, Status.FAIL, "provider_missing"),
    ],
)
def test_a_keychain_that_cannot_be_used_says_why(tmp_path, changes, status, reason):
    row = look(tmp_path, answers=answers("keychain", **changes))["keychain"]
    assert (row.status, row.reason.value) == (status, reason)


def test_the_runtime_says_what_it_found(tmp_path):
    rows = look(tmp_path)
    assert rows["runtime"].status is Status.OK
    assert "/usr/bin/lamp" in rows["runtime"].finding.detail
    assert rows["binary"].finding.detail.startswith("embedded")


def test_a_runtime_that_finds_no_program_is_told(tmp_path):
    rows = look(tmp_path, answers=answers("runtime", binaries=[]))
    assert rows["runtime"].reason is Reason.RUNTIME_NOT_FOUND
    assert rows["binary"].status is Status.SKIP
    rows = look(tmp_path, answers=answers("runtime", binaries=[["/usr/bin/lamp", "lamp", ""]]))
    assert rows["runtime"].status is Status.OK
    assert rows["binary"].reason is Reason.RUNTIME_NOT_FOUND


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX systems")
def test_a_configured_program_is_proved_without_the_plugin_too(tmp_path: Path):
    program = tmp_path / "bin" / "lamp"
    program.parent.mkdir()
    program.write_bytes(b"")
    program.chmod(0o755)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    lost = answers("runtime", reason="provider_missing")

    def binary(**section):
        config = make_config(runtime={"binary": str(program), **section})
        return look(tmp_path, config=config, answers=lost)["binary"]

    assert binary(binary_sha256=empty).status is Status.OK
    assert binary().reason is Reason.RUNTIME_CHANGED
    assert binary(binary_sha256="0" * 64).reason is Reason.RUNTIME_CHANGED
    program.chmod(0o777)
    assert binary(binary_sha256=empty).reason is Reason.RUNTIME_UNSAFE
    program.unlink()
    assert binary(binary_sha256=empty).reason is Reason.RUNTIME_NOT_FOUND


def test_without_a_report_of_the_child_the_providers_are_missing(tmp_path):
    rows = look(tmp_path, plugin("lamp", "plugin_import_failed"), answers=None)
    assert rows["keychain"].reason is rows["runtime"].reason is Reason.PROVIDER_MISSING
    assert rows["sides"].status is Status.OK
    assert rows["binary"].status is Status.SKIP


def test_a_survey_that_fails_is_one_row(tmp_path):
    def survey():
        raise RuntimeError

    rows = run_checks(plugins.checks(), make_situation(tmp_path, survey=survey))
    assert [row.status for row in rows] == [Status.FAIL, *[Status.SKIP] * 4]
