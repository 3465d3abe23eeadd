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


def _code(*, tests: bool) -> str:
    """Return the program's code, or that of all tests but this file."""
    files = [
        path
        for folder in ("companion_core", "plugins", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if ("tests" in path.relative_to(ROOT).parts) is tests
        and path not in {ROOT / "companion_core" / "errors.py", Path(__file__)}
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(files))


def _unnamed(code: str) -> list[str]:
    """Return the reasons that `code` names neither by member nor by value.

    A value of one word counts in quotes alone: "usage" stands in many a sentence.
    """
    members = set(re.findall(r"\bReason\.([A-Z_]+)", code))
    values = set(re.findall(r"[\"']([a-z]+)[\"']|\b([a-z]+_[a-z_]+)\b", code))
    named = {word for pair in values for word in pair}
    return [r.name for r in Reason if r.name not in members and r.value not in named]


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


def test_every_reason_is_given_somewhere() -> None:
    unused = _unnamed(_code(tests=False))
    assert not unused, f"nothing in the program gives: {unused}"


def test_every_reason_has_a_test_that_names_it() -> None:
    untested = _unnamed(_code(tests=True))
    assert not untested, f"no test names: {untested}"
    assert _unnamed("Reason.OK and 'usage'")[:2] == ["MALFORMED_SPEC", "SCHEME_NOT_ALLOWED"]


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
