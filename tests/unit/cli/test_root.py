import dataclasses
import io
import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from companion_core.cli import COMMANDS, exec_command, main, refuse
from companion_core.cli.progress import StepPrinter
from companion_core.cli.status_command import as_text
from companion_core.control import client as control
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit


def test_every_command_of_the_table_exists_with_the_help_that_the_table_shows():
    for name, entry in COMMANDS.items():
        command = import_module(f"companion_core.cli.{name}_command").command
        assert isinstance(command, click.Command)
        assert command.name == name
        assert command.help, name
        assert entry.help.endswith(".")


def test_status_of_nothing_has_every_key_and_exits_5(tmp_path, capsys):
    assert main(["--state-dir", str(tmp_path), "status", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["available"] is False
    assert document["reason"] == "not_running"
    assert {
        "lifecycle", "pid", "started_at", "gateway", "runtime", "model", "admission",
        "resources", "last_health_ok_seconds_ago", "plugins",
    } <= set(document)  # fmt: skip


def test_down_of_nothing_is_fine(tmp_path, capsys):
    assert main(["--state-dir", str(tmp_path), "down", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "stopped": False}


def test_a_first_start_without_anything_is_told_what_to_write(tmp_path, monkeypatch, capsys):
    # No argument of `main` leads to the default configuration of another home.
    monkeypatch.setattr("companion_core.cli.default_config_file", lambda: tmp_path / "config.toml")
    assert main(["--state-dir", str(tmp_path), "up"]) == 2
    told = capsys.readouterr().err
    for words in ("companion models add ./model.gguf", "trusted_keys = [", "companion init"):
        assert words in told
    assert told.splitlines()[-1].startswith("companion: configuration_invalid: ")


def test_token_of_nothing_exits_5_with_its_advice_last(tmp_path, capsys):
    assert main(["--state-dir", str(tmp_path), "token"]) == 5
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("companion: not_running: ")


def test_exec_without_a_program_is_an_own_failure(capsys):
    assert main(["exec"]) == 125
    assert capsys.readouterr().err.splitlines()[-1].startswith("companion: usage: ")


def test_exec_cannot_keep_another_key_than_the_sessions(tmp_path, capsys):
    arguments = ["exec", "--keep", "openai_api_key", "--", "true"]
    assert main(["--state-dir", str(tmp_path), *arguments]) == 125
    said, last = capsys.readouterr().err.splitlines()
    assert said == "companion: OPENAI_API_KEY is the session's own"
    assert last.startswith("companion: usage: ")


class Unwritable(io.StringIO):
    def write(self, _text):
        raise BrokenPipeError


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Run `exec` beside a companion that answers; return what CMD would get."""
    session = {"base_url": "http://127.0.0.1:4/v1", "token": "t"}
    # In place of a running companion, and of the program that would replace this process.
    monkeypatch.setattr(exec_command, "ask_running", lambda *_: session)
    got = []
    monkeypatch.setattr(exec_command, "become", lambda *given: got.append(given[2]))
    main(["--state-dir", str(tmp_path), "exec", "--", "true"])
    return got


@pytest.mark.parametrize("taken", [True, False])
def test_exec_names_a_few_of_what_it_set_aside_as_plain_text(taken, request, monkeypatch, capsys):
    for number in range(9):
        monkeypatch.setenv(f"OPENAI_{number}\x1b[2J", "a secret of the person")
    if not taken:
        monkeypatch.setattr(sys, "stderr", Unwritable())
    (env,) = request.getfixturevalue("executed")
    assert env["OPENAI_BASE_URL"] == "http://127.0.0.1:4/v1"
    assert "OPENAI_MODEL" not in env  # a companion of an earlier release does not name it
    assert "a secret of the person" not in env.values()
    if taken:
        said = capsys.readouterr().err
        assert "a secret of the person" not in said
        assert said.isascii()
        assert "\x1b" not in said
        assert "'OPENAI_0\\x1b[2J', " in said
        assert " and 1 more; " in said


def test_exec_of_nothing_is_an_own_failure(tmp_path, capsys):
    assert main(["--state-dir", str(tmp_path), "exec", "--", "true"]) == 125
    assert "not_running" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["status", "--nonsense"], ["--instance", "../x", "status"]],
)
def test_wrong_usage_exits_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("companion: usage: ")


def test_a_refusal_is_a_json_document_where_json_was_asked_for(tmp_path, capsys):
    code = main(
        ["--config", str(tmp_path / "none.toml"), "--state-dir", str(tmp_path), "up", "--json"]
    )
    out, err = capsys.readouterr()
    assert code == 2
    document = json.loads(out)
    assert document["ok"] is False
    assert document["reason"] == "configuration_invalid"
    assert document["advice"]
    assert "none.toml" in err


def test_a_fault_of_the_program_exits_1_and_names_no_value(tmp_path, capsys, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("a secret of the fault")

    # A fault planted in a command.
    monkeypatch.setattr("companion_core.cli.status_command.ask_running", fail)
    assert main(["--state-dir", str(tmp_path), "status"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("companion: internal_fault: ")
    assert "a secret of the fault" not in err


@pytest.mark.parametrize("command", [["status"], ["token"], ["metrics"], ["exec", "--", "true"]])
@pytest.mark.parametrize("gone", [True, False])
def test_a_companion_that_gives_no_answer_has_just_ended_or_is_silent(
    tmp_path, monkeypatch, capsys, gone, command
):
    def silent(*_arguments):
        raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)

    # In place of a running companion.
    monkeypatch.setattr(control, "find_running", lambda *_: object())
    monkeypatch.setattr(control, "ask", silent)
    monkeypatch.setattr(control, "has_gone", lambda *_: gone)
    code = main(["--state-dir", str(tmp_path), *command])
    told = capsys.readouterr()
    if command[0] == "exec":
        assert code == 125
    else:
        assert code == (5 if gone else 4)
    reason = "not_running" if gone else "control_unavailable"
    assert (command == ["status"] and gone) or f"companion: {reason}: " in told.err


def test_a_companion_that_answers_with_a_refusal_is_not_waited_for(tmp_path, monkeypatch):
    def refusing(*_arguments):
        raise EnvironmentUnavailable(Reason.NOT_READY)

    # In place of a running companion.
    monkeypatch.setattr(control, "find_running", lambda *_: object())
    monkeypatch.setattr(control, "ask", refusing)
    monkeypatch.setattr(control, "has_gone", lambda *_: pytest.fail("it is there"))
    assert main(["--state-dir", str(tmp_path), "token"]) == 4


def test_json_after_the_separator_belongs_to_the_client(tmp_path, capsys):
    main(["--state-dir", str(tmp_path), "token", "--", "--json"])
    assert capsys.readouterr().out == ""


def test_a_shut_doorway_is_a_refusal_and_no_crash(tmp_path, capsys):
    paths = tmp_path / "instances" / "default"
    paths.mkdir(parents=True, mode=0o700)
    state = paths / "state.json"
    state.write_text('{"pid": 1, "start_time": 1, "control_socket": "/x"}')
    state.chmod(0o600)
    assert main(["--state-dir", str(tmp_path), "status"], egress=RefusingEgress()) == 4
    assert "companion: egress_refused: " in capsys.readouterr().err


def test_progress_of_a_closed_stderr_goes_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    StepPrinter()(Step("download", "tiny", 1, 2))
    StepPrinter()(Step("model", "tiny"))


@pytest.mark.skipif(os.name != "posix", reason="a pipe that nobody reads")
def test_progress_that_nobody_reads_any_more_goes_nowhere(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as left:
        monkeypatch.setattr(sys, "stderr", left)
        printer = StepPrinter()
        for _ in range(2):
            printer(Step("model", "tiny"))


def test_a_plugin_at_fault_is_named(capsys):
    assert refuse(PluginFault(Reason.PLUGIN_CALL_FAILED, "llamafile", "what it did")) == 3
    first, last = capsys.readouterr().err.splitlines()
    assert first == "companion: plugin llamafile: what it did"
    assert last.startswith("companion: plugin_call_failed: ")


def test_the_text_of_a_status_has_every_fact_of_the_document():
    status = {
        "available": True, "reason": "ok", "lifecycle": "ready", "pid": 4711,
        "started_at": "2026-01-01T00:00:00Z",
        "gateway": {"url": "http://127.0.0.1:40123/v1"},
        "runtime": {
            "name": "llamacpp", "pid": 4712, "channel": "unix",
            "isolation": "bubblewrap", "ceilings": "observed", "ceilings_detail": "no group",
        },
        "model": {"id": "tiny", "verified": True},
        "admission": {"in_flight": 1, "max_in_flight": 2, "queued": 3, "queue_bound": 16},
        "resources": {"ram_bytes": 123_000_000, "vram_bytes": 456_000_000, "cpu_percent": 1.5},
        "last_health_ok_seconds_ago": 1.25,
        "plugins": {"keychain": "linux", "probe": "process"},
    }  # fmt: skip
    text = as_text(status)
    for fact in (
        "available", "ready", "4711", "2026-01-01T00:00:00Z", "http://127.0.0.1:40123/v1",
        "llamacpp, pid 4712, unix", "bubblewrap; ceilings observed: no group",
        "tiny, verified", "1 of 2", "3 of 16", "123 MB", "456 MB",
        "1.5 %", "1.2 s", "keychain linux", "probe process",
    ):  # fmt: skip
        assert fact in text
    for step, told in {
        None: "begun",
        Step("download", "new", 300_000, 1_200_000): "download 0.3 of 1.2 MB",
        Step("model", "proved"): "model proved",
    }.items():
        document = None if step is None else dataclasses.asdict(step)
        swapping = as_text({**status, "swap": {"model": "new", "step": document}})
        assert f"swap       to new: {told}\n" in swapping
    refused = as_text({**status, "available": False, "reason": "health_stale", "version": "7.5"})
    assert refused.startswith("not available (health_stale)")
    assert ", version 7.5\n" in refused
    step = dataclasses.asdict(Step("download", "tiny", 300_000, 1_200_000))
    starting = as_text({**status, "available": False, "reason": "not_verified", "step": step})
    assert starting.startswith("starting, lifecycle ready")
    assert "start      download 0.3 of 1.2 MB\n" in starting


@pytest.mark.parametrize("arguments", [[], ["manifest"]])
def test_without_a_command_the_help_is_shown(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: companion")
    assert err.splitlines()[-1].startswith("companion: usage: ")


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## Commands") : readme.index("Exit codes:")]
    for name in COMMANDS:
        assert re.search(rf"[ `]{name}[ `]", table), name
