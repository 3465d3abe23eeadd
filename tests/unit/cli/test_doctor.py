"""The command around the checks: exit codes, streams, colour, progress, interrupts, the bundle."""

from __future__ import annotations

import io
import json
import sys

import pytest
from doctor_parts import make_row

import companion_core.doctor as doctor_package
from companion_core.cli import foreground, main
from companion_core.doctor.findings import broken, fine, judge, repaired
from companion_core.doctor.report import Report
from companion_core.errors import Reason

pytestmark = pytest.mark.unit


WELL = (fine("well"),)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _soft(monkeypatch):
    """Do not harden this process: it runs further tests."""
    monkeypatch.setattr(foreground, "harden_process", lambda: None)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command on made-up findings."""

    def run(*arguments, findings=WELL, root=(), raising=None):
        def examine(situation, *, on_check):
            on_check(type("Check", (), {"title": "the keychain"}))
            run.situation = situation
            if raising is not None:
                raise raising
            rows = [make_row(f"row-{number}", each) for number, each in enumerate(findings)]
            return Report(rows=rows, judgement=judge(rows))

        # The findings are made up; `main` takes none.
        monkeypatch.setattr(doctor_package, "examine", examine)
        code = main(["--state-dir", str(tmp_path / "state"), *root, "doctor", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize("mode", [[], ["--json"]])
@pytest.mark.parametrize(
    ("findings", "code", "reason"),
    [
        ([fine("well")], 0, "ok"),
        ([fine(), repaired(Reason.STALE_STATE, "removed")], 0, "ok"),
        ([broken(Reason.KEYCHAIN_LOCKED)], 4, "keychain_locked"),
        ([broken(Reason.KEYCHAIN_LOCKED), broken(Reason.RUNTIME_CHANGED)], 3, "runtime_changed"),
    ],
)
def test_the_exit_code_and_the_last_line_say_the_worst(run, mode, findings, code, reason):
    exit_code, out, err = run(*mode, findings=findings)
    assert exit_code == code
    if code:
        assert err.splitlines()[-1].startswith(f"companion: {reason}: ")
        assert err.splitlines()[-1] != f"companion: {reason}: "
    else:
        assert err == ""
    if mode:
        document = json.loads(out)
        assert (document["ok"], document["reason"]) == (code == 0, reason)
        assert len(document["rows"]) == len(findings)


def test_the_options_and_their_origins_reach_the_checks(run, monkeypatch):
    run("--repair")
    assert run.situation.repair is True
    assert run.situation.origins == {
        "config_file": "default",
        "state_dir": "option",
        "instance": "default",
    }
    monkeypatch.setenv("COMPANION_CONFIG", "/x.toml")
    run(root=["--instance", "two"])
    assert run.situation.repair is False
    assert run.situation.origins["config_file"] == "environment"
    assert run.situation.origins["instance"] == "option"


def test_colour_is_for_terminals_alone(run, monkeypatch):
    for environment, terminal, coloured in (
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({}, False, False),
    ):
        out = Terminal() if terminal else io.StringIO()
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", out)
            run()
        assert ("\x1b[" in out.getvalue()) is coloured


def test_progress_is_for_terminals_alone(run, monkeypatch):
    for arguments, root, terminal, drawn in (
        ([], [], True, True),
        (["--json"], [], True, False),
        ([], ["--quiet"], True, False),
        ([], [], False, False),
    ):
        err = Terminal() if terminal else io.StringIO()
        with monkeypatch.context() as patch:
            patch.delenv("CI", raising=False)
            patch.setattr(sys, "stderr", err)
            run(*arguments, root=root)
        assert ("the keychain" in err.getvalue()) is drawn


def test_an_interrupt_exits_130_and_leaves_no_half_bundle(run, tmp_path):
    bundle = tmp_path / "bundle.tar.gz"
    code, out, err = run("--bundle", str(bundle), raising=KeyboardInterrupt())
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("companion: interrupted: ")
    assert not bundle.exists()


def test_a_bundle_that_exists_is_wrong_usage_and_nothing_is_looked_at(run, tmp_path):
    bundle = tmp_path / "bundle.tar.gz"
    bundle.write_text("mine")
    code, _, err = run("--bundle", str(bundle), raising=AssertionError("was looked at"))
    assert code == 2
    assert str(bundle) in err
    assert bundle.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "terminal", "typed", "said"),
    [
        (["--repair", "--yes"], False, "", True),
        (["--repair"], False, "y\n", False),
        (["--repair"], True, "y\n", True),
        (["--repair"], True, "\n", False),
        (["--repair"], True, "n\n", False),
    ],
)
def test_a_question_is_put_to_a_person_and_to_no_program(
    run, monkeypatch, *, options, terminal, typed, said
):
    run(*options)
    kind = Terminal if terminal else io.StringIO
    err = kind()
    monkeypatch.setattr(sys, "stdin", kind(typed))
    monkeypatch.setattr(sys, "stderr", err)
    assert run.situation.confirm("Is the time right now?") is said
    assert ("Is the time right now?" in err.getvalue()) == terminal


def test_a_yes_is_for_a_repair_alone(run):
    code, _, err = run("--yes")
    assert code == 2
    assert "--repair" in err
