"""The root command's options stand before or after a command's name; the daily ones come first."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from companion_core.cli import COMMANDS, cli, main

pytestmark = pytest.mark.unit

# The order of a person's day; a name that has no command yet is passed over.
ORDER = [
    *("run", "chat", "up", "down", "status", "exec", "logs", "models"),
    *("init", "connect", "service", "login", "logout", "doctor", "update", "keys", "token"),
    *("metrics", "completion", "demo"),
    *("plugins", "manifest"),
]


def test_the_help_shows_the_daily_commands_first() -> None:
    assert list(COMMANDS) == [name for name in ORDER if name in COMMANDS]
    assert {COMMANDS[name].section for name in ("up", "status", "models")} == {"Daily"}
    assert {COMMANDS[name].section for name in ("doctor", "token", "demo")} == {"Set-up"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--state-dir", "{}", "status", "--json"],
        ["status", "--state-dir", "{}", "--json"],
        ["status", "--json", "--state-dir={}", "--instance", "other"],
        ["--state-dir", "/nowhere", "status", "--json", "--state-dir", "{}"],
    ],
)
def test_a_folder_is_taken_before_and_after_the_name(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "instances" / "default"
    state.mkdir(parents=True, mode=0o700)
    assert main([each.format(tmp_path) for each in arguments]) == 5
    assert json.loads(capsys.readouterr().out)["reason"] == "not_running"


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_configuration_is_taken_at_every_level_of_a_group(
    place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--state-dir", str(tmp_path / "state"), "models", "list"]
    arguments[place + 1 : place + 1] = ["--config", str(tmp_path / "none.toml")]
    assert main(arguments) == 2
    assert "none.toml: there is no such file" in capsys.readouterr().err


def test_what_follows_the_program_of_exec_is_the_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state-dir", str(tmp_path)]
    assert main(["exec", *state, "--", "true", "--instance", "../not/a/name"]) == 125
    assert "not_running" in capsys.readouterr().err
    assert main(["exec", *state, "true", "--instance", "../not/a/name"]) == 125
    assert "not_running" in capsys.readouterr().err


def test_a_wrong_name_is_refused_also_after_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["status", "--instance", "../x"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("companion: usage: ")


def test_no_command_has_an_option_of_that_name_itself() -> None:
    names = {option for parameter in cli.params for option in parameter.opts}
    with click.Context(cli) as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            seen = [option for each in command.params for option in each.opts if option in names]
            assert len(seen) == len(set(seen)), name
