"""Programs connected, looked at and taken back, in a home folder of the test."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tomllib

import pytest
from ruamel.yaml import YAML

from companion_core.authority import client_keys
from companion_core.authority.client_keys import ClientKeyFile
from companion_core.connect import PROGRAMS, Connections, Places, Wanted
from companion_core.connect import connections as module
from companion_core.decisions.client_key import key_digest
from companion_core.errors import CompanionError, Reason, Refused, UsageError

pytestmark = pytest.mark.unit

WANTED = Wanted(
    port=4711, model="tiny", context=8192, token_command=("/opt/my env/python", "-P", "token")
)
KEEPS_A_KEY = sorted(name for name, program in PROGRAMS.items() if program.has_key)
# A file that the person has already, for each program that has one.
MINE = {
    "claude-code": ('{\n  "theme": "dark",\n  "model": "opus"\n}\n', ".claude/settings.json"),
    "codex": ('model = "o4" # mine\n\n[tui]\nx = 1\n', ".codex/config.toml"),
    "aider": ("dark-mode: true  # mine\nmodel: gpt\n", ".aider.conf.yml"),
    "continue": ("name: me\nmodels:\n  - name: a  # mine\n    provider: b\n",
                 ".continue/config.yaml"),
    "zed": ('// mine\n{\n  "vim_mode": true, // yes\n}\n', ".config/zed/settings.json"),
    "llm": ("- model_id: mine  # kept\n  model_name: x\n",
            ".config/io.datasette.llm/extra-openai-models.yaml"),
    "opencode": ('{\n  // mine\n  "model": "a/b"\n}\n', ".config/opencode/opencode.json"),
    "cline": ('{"version":1,"providers":{}}', ".cline/data/settings/providers.json"),
}  # fmt: skip


@pytest.fixture
def keys(tmp_path):
    return ClientKeyFile(tmp_path / "state" / "clients", clock=lambda: 1.8e9)


@pytest.fixture
def places(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Places(home=home, variables={}, own=tmp_path / "state" / "connect", system="linux")


@pytest.fixture
def connections(places, keys):
    return Connections(places, keys)


def tree(home):
    """Return every file below a folder, with its content and mode, and every folder."""
    return {
        str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mode)
        if path.is_file()
        else None
        for path in home.rglob("*")
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_settings_is_connected_and_leaves_nothing_behind(
    name, connections, places, keys
):
    assert connections.look(name, WANTED).state == "absent"
    done = connections.lead(name, WANTED)
    assert done.changed
    look = connections.look(name, WANTED)
    assert (look.state, look.connected, look.detail) == ("ok", True, "")
    for path in done.files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not connections.lead(name, WANTED).changed
    assert [key.name for key in keys.read()] == (
        [f"connect-{name}"] if PROGRAMS[name].has_key else []
    )
    assert connections.connected() == (name,)
    connections.remove(name)
    assert tree(places.home) == {}
    assert [*places.own.iterdir()] == []
    assert keys.read() == ()
    assert connections.look(name, WANTED).state == "absent"
    assert connections.remove(name) is None


@pytest.mark.parametrize("name", MINE)
def test_a_persons_own_file_keeps_every_line_and_comes_back_to_the_byte(name, connections, places):
    text, where = MINE[name]
    path = places.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o640)
    before = tree(places.home)
    connections.lead(name, WANTED)
    assert connections.look(name, WANTED).state == "ok"
    now = path.read_text()
    assert "tiny" in now
    for line in text.splitlines():
        if "model" not in line and not line.startswith("{"):
            assert line.rstrip(",") in now
    connections.remove(name)
    assert tree(places.home) == before


@pytest.mark.parametrize("name", MINE)
def test_what_a_person_changes_later_stays_when_the_connection_goes(name, connections, places):
    text, where = MINE[name]
    path = places.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    connections.lead(name, WANTED)
    mark = "//" if path.suffix == ".json" else "#"
    path.write_text(path.read_text() + f"{mark} later\n")
    assert connections.look(name, WANTED).state == "ok"
    connections.remove(name)
    left = path.read_text()
    assert f"{mark} later" in left
    assert "4711" not in left
    assert "tiny" not in left
    if name in {"codex", "aider", "zed", "continue", "llm"}:
        assert left == text + f"{mark} later\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_another_port_is_drift_and_connecting_again_mends_it(name, connections, keys):
    connections.lead(name, WANTED)
    moved = dataclasses.replace(WANTED, port=4712)
    if name in {"claude-code", "codex", "aider", "continue", "zed", "llm", "opencode", "cline"}:
        assert connections.look(name, moved).state == "drift"
    before = keys.read()
    assert connections.lead(name, moved).changed
    assert connections.look(name, moved).state == "ok"
    assert keys.read() == before
    connections.remove(name)
    assert connections.connected() == ()


@pytest.mark.parametrize("name", KEEPS_A_KEY)
def test_a_revoked_key_is_drift_and_another_is_made(name, connections, keys):
    made = connections.lead(name, WANTED)
    keys.revoke(f"connect-{name}")
    look = connections.look(name, WANTED)
    assert (look.state, look.detail) == ("drift", "its key opens nothing")
    again = connections.lead(name, WANTED)
    assert again.key != made.key
    [stored] = keys.read()
    assert stored.is_of(key_digest(again.key.reveal()))
    assert connections.look(name, WANTED).state == "ok"


def test_the_key_in_a_programs_file_is_the_one_that_opens_the_door(connections, places, keys):
    for name in KEEPS_A_KEY:
        key = connections.lead(name, WANTED).key.reveal()
        told = "".join(p.read_text() for p in places.home.rglob("*") if p.is_file())
        told += "".join(p.read_text() for p in places.own.glob("open*"))
        assert (key in told) == (name != "zed")
        assert key not in "".join(p.read_text() for p in places.own.glob("*.json"))
    assert len(keys.read()) == len(KEEPS_A_KEY)


def test_what_each_program_reads_is_its_own_format(connections, places):
    for name in PROGRAMS:
        connections.lead(name, WANTED)
    home = places.home
    base = "http://127.0.0.1:4711"
    claude = json.loads((home / ".claude/settings.json").read_text())
    assert claude["apiKeyHelper"] == "'/opt/my env/python' -P token"
    assert claude["env"]["ANTHROPIC_BASE_URL"] == base
    codex = tomllib.loads((home / ".codex/config.toml").read_text())
    assert codex["model_provider"] == "companion"
    provider = codex["model_providers"]["companion"]
    assert provider["auth"] == {"command": "/opt/my env/python", "args": ["-P", "token"]}
    assert (provider["base_url"], provider["wire_api"]) == (f"{base}/v1", "responses")
    aider = YAML(typ="safe").load((home / ".aider.conf.yml").read_text())
    assert (aider["model"], aider["openai-api-base"]) == ("openai/tiny", f"{base}/v1")
    opencode = json.loads((home / ".config/opencode/opencode.json").read_text())
    options = opencode["provider"]["companion"]["options"]
    assert options["apiKey"] == f"{{file:{places.own / 'opencode.key'}}}"
    [model] = YAML(typ="safe").load((home / ".continue/config.yaml").read_text())["models"]
    assert (model["provider"], model["apiBase"]) == ("openai", f"{base}/v1")
    environment = (places.own / "open-webui.env").read_text()
    assert f"OPENAI_API_BASE_URLS={base}/v1\n" in environment


def test_folders_that_variables_name_are_used(places, keys, tmp_path):
    named = {
        "CODEX_HOME": str(tmp_path / "codex"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "LLM_USER_PATH": "relative/is/not/taken",
    }
    connections = Connections(dataclasses.replace(places, variables=named), keys)
    for name in ("codex", "opencode", "llm"):
        connections.lead(name, WANTED)
    assert (tmp_path / "codex" / "config.toml").exists()
    assert (tmp_path / "xdg" / "opencode" / "opencode.json").exists()
    assert (tmp_path / "xdg" / "io.datasette.llm" / "keys.json").exists()


@pytest.mark.parametrize(
    ("name", "where", "text", "told"),
    [
        ("codex", ".codex/config.toml", '[model_providers.companion]\nname = "x"\n',
         "model_providers.companion"),
        ("codex", ".codex/config.toml", 'profile = "x"\n', "profile"),
        ("codex", ".codex/config.toml", "model = \n", "is no TOML"),
        ("claude-code", ".claude/settings.json", '{"env": {"ANTHROPIC_API_KEY": "x"}}',
         "env.ANTHROPIC_API_KEY"),
        ("claude-code", ".claude/settings.json", '{"apiKeyHelper": "mine"}', "apiKeyHelper"),
        ("claude-code", ".claude/settings.json", '{"env": []}', "env is no table"),
        ("aider", ".aider.conf.yml", "openai-api-key: mine\n", "openai-api-key"),
        ("continue", ".continue/config.yaml", "models: {a: 1}\n", "models is no list"),
        ("zed", ".config/zed/settings.json", "{", "is no JSON"),
        ("llm", ".config/io.datasette.llm/keys.json", '{"companion": "x"}', "companion"),
    ],
)  # fmt: skip
def test_what_is_not_understood_or_someone_elses_is_never_written_over(
    connections, places, keys, *, name, where, text, told
):
    path = places.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    before = tree(places.home)
    assert connections.look(name, WANTED).state == "foreign"
    with pytest.raises(Refused) as refused:
        connections.lead(name, WANTED)
    assert refused.value.reason is Reason.CLIENT_FILE_FOREIGN
    assert told in refused.value.detail
    assert tree(places.home) == before
    assert keys.read() == ()
    assert connections.connected() == ()


def test_a_file_broken_since_is_foreign_and_not_removed(connections, places):
    connections.lead("codex", WANTED)
    path = places.home / ".codex/config.toml"
    path.write_text("[[[")
    assert connections.look("codex", WANTED).state == "foreign"
    for act in (lambda: connections.remove("codex"), lambda: connections.lead("codex", WANTED)):
        with pytest.raises(Refused):
            act()
    assert path.read_text() == "[[["
    path.unlink()
    assert connections.look("codex", WANTED).state == "drift"
    connections.lead("codex", WANTED)
    assert connections.look("codex", WANTED).state == "ok"


def test_a_value_that_somebody_changed_since_stays(connections, places):
    connections.lead("codex", WANTED)
    path = places.home / ".codex/config.toml"
    path.write_text(path.read_text().replace('model = "tiny"', 'model = "mine"'))
    assert connections.look("codex", WANTED).detail == "model differs"
    assert connections.remove("codex").left == ("model",)
    assert tomllib.loads(path.read_text()) == {"model": "mine"}


def test_what_only_a_connection_has_goes_with_it_also_where_it_was_changed(connections, places):
    connections.lead("codex", WANTED)
    path = places.home / ".codex/config.toml"
    path.write_text("# mine\n" + path.read_text().replace("4711", "4712"))
    assert connections.look("codex", WANTED).state == "drift"
    connections.lead("codex", WANTED)
    assert connections.look("codex", WANTED).state == "ok"
    path.write_text(path.read_text().replace("4711", "4712"))
    assert connections.remove("codex").left == ()
    assert path.read_text() == "# mine\n"
    assert connections.look("codex", WANTED).state == "absent"


def test_a_link_stays_and_the_file_behind_it_is_changed(connections, places):
    kept = places.home / "dotfiles" / "config.toml"
    kept.parent.mkdir()
    kept.write_text("a = 1\n")
    link = places.home / ".codex" / "config.toml"
    link.parent.mkdir()
    link.symlink_to("../dotfiles/config.toml")
    connections.lead("codex", WANTED)
    assert link.is_symlink()
    assert "companion" in kept.read_text()
    connections.remove("codex")
    assert link.is_symlink()
    assert kept.read_text() == "a = 1\n"
    kept.unlink()
    with pytest.raises(Refused) as refused:
        connections.lead("codex", WANTED)
    assert "is a link to nothing" in refused.value.detail


def test_a_place_that_others_can_change_is_refused(connections, places):
    folder = places.home / ".codex"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Refused) as refused:
        connections.lead("codex", WANTED)
    assert refused.value.reason is Reason.STATE_PATH_UNSAFE
    assert [*folder.iterdir()] == []


def test_a_pipe_in_place_of_a_file_is_refused(connections, places):
    os.mkfifo(places.home / ".aider.conf.yml")
    with pytest.raises(Refused) as refused:
        connections.lead("aider", WANTED)
    assert "is no ordinary file" in refused.value.detail


def test_a_model_that_was_named_stays_and_another_follows_what_is_served(connections):
    connections.lead("codex", WANTED, model="big")
    connections.lead("llm", WANTED)
    other = dataclasses.replace(WANTED, model="other")
    assert connections.look("codex", other).state == "ok"
    assert connections.look("llm", other).state == "drift"
    nothing = dataclasses.replace(WANTED, port=None, model=None, context=None)
    assert connections.look("codex", nothing).state == "ok"
    assert connections.look("llm", nothing).state == "ok"


def test_without_a_port_or_a_model_nothing_is_written(connections, places):
    with pytest.raises(CompanionError) as error:
        connections.lead("codex", dataclasses.replace(WANTED, port=None))
    assert error.value.reason is Reason.NOT_RUNNING
    with pytest.raises(UsageError):
        connections.lead("codex", dataclasses.replace(WANTED, model=None))
    assert tree(places.home) == {}


@pytest.mark.parametrize("name", ["llm", "opencode", "aider"])
@pytest.mark.parametrize("stop_at", range(6))
def test_stopped_between_any_two_steps_it_is_made_whole_or_taken_back(
    connections, places, keys, monkeypatch, *, name, stop_at
):
    count = 0

    def stops(real):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count > stop_at:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for where, function in (
            (module, "write_record"), (module, "write_file"), (module, "write_private"),
            (client_keys, "write_private"),
        ):  # fmt: skip
            patched.setattr(where, function, stops(getattr(where, function)))
        try:
            connections.lead(name, WANTED)
        except KeyboardInterrupt:
            assert stop_at < 5
    if stop_at % 2:
        connections.remove(name)
        if connections.look(name, WANTED).state == "absent":
            assert tree(places.home) == {}
    connections.lead(name, WANTED)
    assert connections.look(name, WANTED).state == "ok"
    assert len(keys.read()) == 1
    connections.remove(name)
    assert tree(places.home) == {}
    assert keys.read() == ()


def test_a_damaged_record_is_told_and_nothing_is_changed(connections, places):
    connections.lead("codex", WANTED)
    (places.own / "codex.json").write_text("{")
    before = tree(places.home)
    look = connections.look("codex", WANTED)
    assert (look.state, look.connected) == ("foreign", True)
    with pytest.raises(Refused):
        connections.remove("codex")
    assert tree(places.home) == before
