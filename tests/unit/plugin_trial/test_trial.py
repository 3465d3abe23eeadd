"""A report is taken only whole: a plugin could have written it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from companion_core.egress.interface import EgressRefused
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.plugin_trial import child
from companion_core.plugin_trial.trial import Trial, _lack, _parse, row_of

pytestmark = pytest.mark.unit

ROW = {
    "name": "lamp",
    "group": "companion.runtime.v1",
    "distribution": "companion-runtime-lamp",
    "version": "0.1.0",
    "core": False,
    "state": "registered",
    "reason": "ok",
    "detail": "",
    "hooks": ["companion_spawn"],
    "selected_for": ["spawn"],
}


ANSWERS = {
    "keychain": {
        "plugin": "vault",
        "reason": "ok",
        "detail": "",
        "device_only": None,
        "session_bound": False,
        "proved": True,
    },
    "runtime": {
        "plugin": "lamp",
        "reason": "ok",
        "detail": "",
        "binaries": [["embedded", "lamp", ""]],
        "channels": ["unix"],
        "formats": ["gguf"],
        "env_names": [],
        "child_env_names": [],
        "option_names": [],
    },
}


def parse(
    *, check: bool = False, checked: Any = None, answers: Any = None, **changes: Any
) -> dict[str, Any] | None:
    report = {"plugins": [{**ROW, **changes}], "checked": checked, "answers": answers}
    return _parse(json.dumps(report).encode(), ["lamp"], check=check)


def test_a_whole_report_is_taken():
    report = parse()
    assert report is not None
    assert row_of(report, "lamp") == ROW


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"name": 7},
        {"group": "runtime"},
        {"state": "sound"},
        {"reason": "fine"},
        {"reason": None},
        {"core": 1},
        {"detail": "\x1b[2J"},
        {"hooks": None},
        {"hooks": [1]},
        {"selected_for": ["\n"]},
        {"check": True},
        {"check": True, "checked": {}},
        {"check": True, "checked": {"passed": [], "failure": "\x07"}},
    ],
)
def test_a_malformed_report_is_no_report(changes: dict[str, Any]):
    assert parse(**changes) is None


def test_answers_are_taken_whole():
    report = parse(answers=ANSWERS)
    assert report is not None
    assert report["answers"] == ANSWERS


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        ("keychain", {"reason": "fine"}),
        ("keychain", {"plugin": "\x1b[2J"}),
        ("keychain", {"detail": 7}),
        ("keychain", {"device_only": "yes"}),
        ("keychain", {"session_bound": 1}),
        ("keychain", {"proved": None}),
        ("runtime", {"binaries": [["embedded"]]}),
        ("runtime", {"binaries": [["a", "b", "\n"]]}),
        ("runtime", {"binaries": 7}),
        ("runtime", {"env_names": [7]}),
        ("runtime", {"formats": None}),
    ],
)
def test_a_report_with_malformed_answers_is_no_report(side: str, changes: dict[str, Any]):
    assert parse(answers={**ANSWERS, side: {**ANSWERS[side], **changes}}) is None
    assert parse(answers={"keychain": ANSWERS["keychain"]}) is None
    assert parse(answers=[]) is None


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b'{"plugins": 7}', b"[" * 100_000])
def test_what_is_no_document_is_no_report(raw: bytes):
    assert _parse(raw, [], check=False) is None


PASSED = {"passed": ["spawn"], "untried": ["runtime: x"], "reason": "ok", "failure": ""}


@pytest.mark.parametrize(
    "changes", [{"untried": ["\x1b[2J"]}, {"untried": None}, {"reason": "fine"}, {"passed": [1]}]
)
def test_a_malformed_result_of_a_check_is_none(changes: dict[str, object]):
    assert parse(check=True, checked={**PASSED, **changes}) is None


def test_a_plugin_that_failed_needs_no_result_of_a_check():
    assert parse(check=True, reason="plugin_import_failed") is not None
    assert parse(check=True, checked=PASSED) is not None


def test_without_a_report_it_is_the_plugins_fault():
    row = row_of(None, "lamp")
    assert (row["state"], row["reason"]) == ("trusted", "plugin_import_failed")


def test_the_child_is_started_through_the_doorway_only():
    with pytest.raises(EgressRefused):
        Trial(egress=RefusingEgress(), records=[]).run(["lamp"])


LACKS = [
    (RuntimeError("can't start new thread"), Reason.LIMIT_REACHED, "ulimit -u"),
    (FileNotFoundError(2, "No such file", "/proc/meminfo"), Reason.DISK_UNAVAILABLE, "/proc/mem"),
    (EnvironmentUnavailable(Reason.LIMIT_REACHED, "threads"), Reason.LIMIT_REACHED, "threads"),
]


@pytest.mark.parametrize(("error", "reason", "part"), LACKS)
def test_what_the_child_lacks_is_told_and_no_plugin_blamed(monkeypatch, error, reason, part):
    def lacking(request: Any) -> Any:
        raise error

    monkeypatch.setattr(child, "report_on", lacking)
    lack = _lack(json.dumps(child._report_or_lack({})).encode())
    assert lack is not None
    assert lack.reason is reason
    assert part in lack.detail


def test_a_fault_of_the_child_is_no_lack(monkeypatch):
    def failing(request: Any) -> Any:
        raise LookupError

    monkeypatch.setattr(child, "report_on", failing)
    with pytest.raises(LookupError):
        child._report_or_lack({})


@pytest.mark.parametrize(
    "told",
    [
        7,
        None,
        {},
        {"reason": "ok", "detail": ""},
        {"reason": "plugin_changed", "detail": ""},
        {"reason": "limit_reached", "detail": "\x1b[2J"},
        {"reason": "limit_reached", "detail": 7},
        {"reason": ["limit_reached"], "detail": ""},
    ],
)
def test_a_malformed_lack_is_none(told: Any):
    assert _lack(json.dumps({"lack": told}).encode()) is None


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b"[" * 100_000])
def test_what_is_no_document_tells_of_no_lack(raw: bytes):
    assert _lack(raw) is None
