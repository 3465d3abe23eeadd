"""The closed list of reasons: each has advice, a documentation row and a use."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import EXIT_CODES, REASONS, Culprit, Reason, error_for

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def _sources() -> str:
    files = [
        path
        for folder in ("companion_core", "plugins", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path != ROOT / "companion_core" / "errors.py" and path != Path(__file__)
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(files))


def test_every_reason_has_advice() -> None:
    assert list(REASONS) == list(Reason)
    for reason, info in REASONS.items():
        assert re.fullmatch(r"\S(?:\S| (?! ))+[.]", info.advice), reason


def test_every_culprit_has_an_exit_code() -> None:
    assert set(EXIT_CODES) == set(Culprit)


def test_every_reason_has_a_documentation_row() -> None:
    rows = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8").splitlines()
    documented = {row.split("`")[1] for row in rows if row.startswith("| `")}
    assert documented == {reason.value for reason in Reason}


def test_every_reason_is_used_outside_its_own_table() -> None:
    sources = _sources()
    unused = [
        reason.name
        for reason in Reason
        if not re.search(rf"\bReason\.{reason.name}\b|[\"']{reason.value}[\"']", sources)
    ]
    assert not unused, f"no rule gives and no test names: {unused}"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_makes_a_refusal_and_an_error_that_say_only_the_reason(
    reason: Reason,
) -> None:
    refusal = refuse(reason)
    assert not refusal.ok
    assert refusal.reason is reason
    assert refuse(reason) is refusal, "made once"
    error = error_for(reason, "a detail", plugin="x")
    assert str(error) == reason.value
    assert error.advice == REASONS[reason].advice
    assert error.exit_code == EXIT_CODES[REASONS[reason].culprit]


def test_the_approval_is_the_only_ok() -> None:
    assert OK.ok
    assert OK.reason is Reason.OK


def test_generated_pages_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    assert spec is not None
    assert spec.loader is not None
    write_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write_docs)
    assert write_docs.main(["--check"]) == 0, capsys.readouterr().out
