"""`companion connect` as a person types it, in a home folder of the test."""

from __future__ import annotations

import json

import click
import pytest

from companion_core.cli import main
from companion_core.cli.connect_command import command
from companion_core.connect import PROGRAMS
from companion_core.egress.refusing import RefusingEgress
from companion_core.serving.kept_port import keep_port

pytestmark = pytest.mark.unit


@pytest.fixture
def person(tmp_path, monkeypatch, capsys):
    """Run the command for a person whose companion was started once; return code and output."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "LLM_USER_PATH", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "companion.toml"
    config.write_text('[keychain]\nname = "memory"\n[runtime]\ncontext_length = 4096\n')
    state = tmp_path / "state"

    def run(*arguments, started=True):
        instance = state / "instances" / "default"
        if started:
            instance.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (state, state / "instances"):
                folder.chmod(0o700)
            keep_port(instance / "port", 4711)
        root = ["--config", str(config), "--state-dir", str(state)]
        code = main([*root, "connect", *arguments], egress=RefusingEgress())
        out, err = capsys.readouterr()
        return code, out, err

    run.home = home
    return run


def test_the_list_names_every_program_and_writes_nothing(person):
    code, out, _ = person("--json")
    assert code == 0
    rows = json.loads(out)["clients"]
    assert [row["name"] for row in rows] == [*PROGRAMS]
    assert {row["state"] for row in rows} == {"absent"}
    assert not any(row["installed"] or row["connected"] for row in rows)
    assert [*person.home.iterdir()] == []
    code, out, _ = person()
    assert code == 0
    assert "Claude Code   not found   absent" in out


def test_a_program_is_connected_checked_and_taken_back(person):
    code, out, err = person("codex", "--model", "tiny", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["changed"] is True
    assert document["clients"][0]["state"] == "ok"
    assert document["files"] == [str(person.home / ".codex" / "config.toml")]
    assert "codex is not on PATH" in err
    assert "takes up to 10,000 tokens, and this model takes 4,096" in err
    assert json.loads(person("codex", "--json")[1])["changed"] is False
    assert person("--check")[0] == 0
    config = person.home / ".codex" / "config.toml"
    config.write_text(config.read_text().replace("4711", "4712"))
    code, out, err = person("--check")
    assert code == 3
    assert "codex: model_providers.companion differs" in err
    assert err.splitlines()[-1].startswith("companion: client_drifted: ")
    assert json.loads(person("--check", "codex", "--json")[1])["reason"] == "client_drifted"
    assert person("codex")[0] == 0  # the advice
    assert person("codex", "--check")[0] == 0
    assert person("--remove")[1] == "Codex CLI is as it was before\n"
    assert [*person.home.iterdir()] == []
    assert person("--remove")[1] == "no program is connected\n"
    assert person("codex", "--remove")[1] == "codex is not connected\n"


def test_a_program_that_looks_nowhere_for_its_key_is_shown_it_once(person):
    _, out, _ = person("zed", "--model", "tiny")
    assert "enter this key once" in out
    assert "enter this key" not in person("zed")[1]


def test_what_stands_there_already_is_told_with_the_way_on(person):
    folder = person.home / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text("[model_providers.companion]\n")
    code, _, err = person("codex", "--model", "tiny")
    assert code == 3
    assert "config.toml has model_providers.companion, which companion connect did not write" in err
    assert err.splitlines()[-1].startswith("companion: client_file_foreign: ")
    assert person("--json")[0] == 0
    (folder / "config.toml").rename(folder / "mine.toml")  # the advice
    assert person("codex", "--model", "tiny")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nothing"], 2, "is no program that is known: claude-code, codex"),
        (["codex"], 2, "no model is known"),
        (["--model", "tiny"], 2, "name the program"),
        (["codex", "--check", "--remove"], 2, "exclude each other"),
        (["codex", "--check"], 2, "codex is not connected: companion connect codex"),
    ],
)
def test_wrong_usage_says_what_is_wrong(person, arguments, code, told):
    found, _, err = person(*arguments)
    assert found == code
    assert told in err


def test_before_the_first_start_there_is_no_port_to_write(person):
    code, _, err = person("codex", "--model", "tiny", started=False)
    assert code == 5
    assert "the gateway's port is chosen at the first start" in err
    assert [*person.home.iterdir()] == []


def test_a_shell_is_told_the_names_of_programs_and_models(person):
    parameters = {each.name: each for each in command.params}
    context = click.Context(command)
    found = parameters["client"].shell_complete(context, "co")
    assert [each.value for each in found] == ["codex", "continue"]
    assert parameters["model_id"].shell_complete(context, "x") == []
