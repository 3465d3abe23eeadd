"""What others wrote reaches no terminal as a command to it: names of files, plugins and models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from companion_core.cli import echo_result, main, refuse
from companion_core.cli.progress import StepPrinter
from companion_core.errors import CompanionError, EnvironmentUnavailable, PluginFault, Reason
from companion_core.serving.step import Step
from companion_core.system.harmless_text import harmless

pytestmark = [pytest.mark.unit, pytest.mark.security]

# They clear a screen, set a title, ring, turn the direction of writing, and begin a C1 sequence.
HOSTILE = "a\x1b[2Jb\x1b]0;c\x07d\u202ee\x9b31mf\udcffg\rh"
SIGNS = ("\x1b", "\x07", "\u202e", "\x9b", "\udcff", "\r")


def clean(text: str) -> bool:
    return bool(text) and not any(sign in text for sign in SIGNS)


def test_lines_and_tabs_and_other_scripts_stay() -> None:
    assert harmless("a\tb\nÜ 語 🙂") == "a\tb\nÜ 語 🙂"
    assert clean(harmless(HOSTILE))


@pytest.mark.parametrize(
    "error",
    [
        EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, HOSTILE),
        PluginFault(Reason.PLUGIN_CHANGED, HOSTILE, HOSTILE),
    ],
)
def test_a_refusal_quotes_nothing_that_moves_the_cursor(
    capsys: pytest.CaptureFixture[str], error: CompanionError
) -> None:
    refuse(error)
    assert clean(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["down", HOSTILE], ["models", "add", f"./{HOSTILE}"]])
def test_an_argument_that_is_quoted_is_harmless(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["--state-dir", str(tmp_path), *arguments]) == 2
    assert clean(capsys.readouterr().err)


def test_a_result_is_harmless_as_text_and_whole_as_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document: dict[str, Any] = {"origin": HOSTILE}
    echo_result(document, f"origin  {HOSTILE}", as_json=False)
    assert clean(capsys.readouterr().out)
    echo_result(document, "", as_json=True)
    said = capsys.readouterr().out
    assert clean(said)
    assert json.loads(said) == document


def test_a_step_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    StepPrinter(quiet=False, as_json=False)(Step("model", HOSTILE))
    assert clean(capsys.readouterr().err)
