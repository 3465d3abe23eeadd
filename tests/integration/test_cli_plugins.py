"""`companion plugins`, with distributions installed in a folder on the import path."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from companion_core.cli import main
from companion_core.cli.plugin_facts import CORE_NAMES
from companion_core.testing import KIT_VERSION, write_fake_runtime

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]

GOOD = """
from companion_core import hookimpl
from companion_core.testing import FakeHealthChecker, FakeSpawner

@hookimpl
def companion_spawn():
    return FakeSpawner()

@hookimpl
def companion_health():
    return FakeHealthChecker()
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


class Machine:
    """The command line in this process; the child that imports plugins is a real one."""

    def __init__(self, folder: Path, install: Callable[..., Path], request) -> None:
        self.state = folder / "state"
        self.site = folder / "site"
        self.install = install
        self._monkeypatch = request.getfixturevalue("monkeypatch")
        self._capsys = request.getfixturevalue("capsys")
        self._monkeypatch.setattr(sys, "path", [str(self.site), *sys.path])
        self._monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(self.site), str(ROOT)]))

    def add(self, name: str, text: str = GOOD) -> Path:
        package = f"companion_runtime_{name}"
        self.install(f"companion-runtime-{name}", {f"{package}/__init__.py": text}, {name: package})
        return self.site / package / "__init__.py"

    def configure(self, line: str) -> None:
        key = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8032, section 7.1
        manifest = f'manifest = {{url = "file:///m.json", trusted_keys = ["{key}"]}}'
        self.state.mkdir(exist_ok=True, mode=0o700)
        (self.state / "none.toml").write_text(f'{manifest}\nmodel.id = "tiny"\n{line}\n')

    def plugins(self, *arguments: str, **environment: str) -> Done:
        root = ["--config", str(self.state / "none.toml"), "--state-dir", str(self.state)]
        with self._monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            code = main([*root, "plugins", *arguments])
        out, err = self._capsys.readouterr()
        imported = [name for name in sys.modules if name.startswith("companion_runtime_")]
        assert not [n for n in imported if str(self.site) in str(sys.modules[n].__file__)]
        return Done(code, out, err)

    def row(self, name: str, **environment: str) -> dict:
        done = self.plugins("list", "--json", **environment)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["plugins"]
        return next(row for row in rows if row["name"] == name)


@pytest.fixture
def machine(tmp_path: Path, install_distribution: Callable[..., Path], request) -> Machine:
    return Machine(tmp_path, install_distribution, request)


def last_line(done: Done) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_the_cores_plugins_are_listed_under_the_names_it_loads(machine: Machine):
    rows = json.loads(machine.plugins("list", "--json").stdout)["plugins"]
    assert {row["name"] for row in rows if row["core"]} == CORE_NAMES


def test_trust_is_asked_for_shown_and_withdrawn(machine: Machine):
    module = machine.add("lamp")
    row = machine.row("lamp")
    assert (row["state"], row["reason"]) == ("found", "plugin_untrusted")
    assert row["hooks"] == []

    unasked = machine.plugins("trust", "lamp")
    assert unasked.returncode == 2
    assert last_line(unasked).startswith("companion: usage: ")
    assert machine.row("lamp")["state"] == "found"

    assert machine.plugins("trust", "lamp", "--yes").returncode == 0
    row = machine.row("lamp")
    assert (row["state"], row["reason"], row["fix"]) == ("registered", "ok", "")
    assert row["hooks"] == ["companion_health", "companion_spawn"]
    assert "already" in machine.plugins("trust", "lamp", "--yes").stdout

    assert machine.row("lamp", COMPANION_PLUGINS="other")["reason"] == "plugin_narrowed"

    module.write_text(GOOD + "#")
    row = machine.row("lamp")
    assert row["reason"] == "plugin_changed"
    assert row["changes"] == ["changed: companion_runtime_lamp/__init__.py"]
    shown = machine.plugins("info", "lamp").stdout
    assert "changed: companion_runtime_lamp/__init__.py" in shown
    again = machine.plugins("trust", "lamp", "--yes")
    assert "changed: companion_runtime_lamp/__init__.py" in again.stderr
    assert machine.row("lamp")["state"] == "registered"

    assert machine.plugins("untrust", "lamp").returncode == 0
    assert machine.row("lamp")["reason"] == "plugin_untrusted"
    assert machine.plugins("untrust", "lamp").returncode == 0


def test_the_expected_digest_is_required_of_what_is_installed(machine: Machine):
    module = machine.add("lamp")
    digest = machine.row("lamp")["digest"]
    for wrong in ("0" * 64, digest[:-1] + ("0" if digest[-1] != "0" else "1")):
        refused = machine.plugins("trust", "lamp", "--yes", "--digest", wrong)
        assert refused.returncode == 3
        assert last_line(refused).startswith("companion: plugin_changed: ")
        assert digest in refused.stderr
        assert wrong in refused.stderr
    for malformed in ("", digest[:-1], digest + "0", "g" * 64, f"sha256:{digest}"):
        assert machine.plugins("trust", "lamp", "--yes", "--digest", malformed).returncode == 2
    assert machine.row("lamp")["reason"] == "plugin_untrusted"

    trusted = machine.plugins("trust", "lamp", "--yes", "--digest", digest.upper(), "--json")
    assert trusted.returncode == 0, trusted.stderr
    assert json.loads(trusted.stdout)["digest"] == digest
    assert machine.plugins("trust", "lamp", "--digest", digest).returncode == 0  # already
    again = machine.plugins("trust", "lamp", "--yes", "--digest", "0" * 64)
    assert again.returncode == 3

    module.write_text(GOOD + "#")
    assert machine.plugins("trust", "lamp", "--yes", "--digest", digest).returncode == 3
    assert machine.row("lamp")["reason"] == "plugin_changed"


def test_what_the_configuration_pins_is_trusted_without_a_question(
    machine: Machine, tmp_path: Path
):
    machine.add("lamp")
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"lamp": machine.row("lamp")["digest"]}))
    machine.configure(f'plugins.pins_file = "{pins}"')
    row = machine.row("lamp")
    assert (row["state"], row["reason"], row["pinned"]) == ("registered", "ok", True)
    assert "pinned" in machine.plugins("info", "lamp").stdout
    assert machine.plugins("check", "lamp").returncode == 0
    assert machine.row("lamp", COMPANION_PLUGINS="")["reason"] == "plugin_narrowed"
    untrusted = machine.plugins("untrust", "lamp", "--json")
    assert json.loads(untrusted.stdout)["pinned"] is True
    assert "COMPANION_PLUGINS" in machine.plugins("untrust", "lamp").stdout
    assert machine.row("lamp")["state"] == "registered"

    pins.write_text("{")
    listed = machine.plugins("list")
    assert listed.returncode == 2
    assert str(pins) in listed.stderr


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 130)])
def test_trust_asks_the_person(machine: Machine, monkeypatch, answer: str, code: int):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    machine.add("lamp")
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    asked = machine.plugins("trust", "lamp")
    assert asked.returncode == code
    assert "companion-runtime-lamp 0.1.0" in asked.stderr
    assert machine.row("lamp")["reason"] == ("ok" if code == 0 else "plugin_untrusted")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ValueError('no')", "plugin_import_failed"),
        ("import os\nos._exit(0)", "plugin_import_failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "plugin_import_failed"),
        ("x = 1", "plugin_registration_refused"),
        (GOOD.replace("return FakeSpawner()", "return None"), "plugin_result_invalid"),
        (GOOD.replace("return FakeSpawner()", "raise SystemExit"), "plugin_call_failed"),
    ],
)
def test_a_first_import_that_fails_is_not_trusted(machine: Machine, text: str, reason: str):
    machine.add("lamp", text)
    refused = machine.plugins("trust", "lamp", "--yes", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stdout)["reason"] == reason
    assert "lamp" in refused.stderr
    assert machine.row("lamp")["reason"] == "plugin_untrusted"


def test_a_plugin_that_ends_the_process_later_costs_itself_alone(machine: Machine):
    machine.add("lamp", GOOD)
    trap = "import os, pathlib\nif pathlib.Path(os.environ['TRAP']).exists():\n    os._exit(0)\n"
    machine.add("trap", trap + GOOD)
    sprung = machine.state.parent / "sprung"
    for name in ("lamp", "trap"):
        assert machine.plugins("trust", name, "--yes", TRAP=str(sprung)).returncode == 0
    sprung.write_text("")
    rows = {name: machine.row(name, TRAP=str(sprung)) for name in ("lamp", "trap", "https")}
    assert rows["lamp"]["reason"] == "ok"
    assert (rows["trap"]["state"], rows["trap"]["reason"]) == ("trusted", "plugin_import_failed")
    assert rows["https"]["core"]


def test_the_result_of_a_check_is_bound_to_the_code(machine: Machine):
    module = machine.add("lamp")
    refused = machine.plugins("check", "lamp")
    assert last_line(refused).startswith("companion: plugin_untrusted: ")
    machine.plugins("trust", "lamp", "--yes")
    assert machine.row("lamp")["conformance"] is None
    checked = machine.plugins("check", "lamp", "--json")
    assert json.loads(checked.stdout)["passed"] == ["health", "spawn"]
    conformance = machine.row("lamp")["conformance"]
    assert (conformance["kit"], conformance["result"]) == (KIT_VERSION, "passed")
    assert [text.partition(":")[0] for text in conformance["untried"]] == ["spawn", "runtime"]
    assert "not tried: runtime: " in machine.plugins("info", "lamp").stdout

    module.write_text(GOOD.replace("FakeHealthChecker()", "FakeHealthChecker(answer=True)"))
    assert machine.row("lamp")["conformance"] is None
    machine.plugins("trust", "lamp", "--yes")
    assert machine.row("lamp")["conformance"] is None
    failed = machine.plugins("check", "lamp")
    assert failed.returncode == 3
    assert "health rule 3" in failed.stderr
    assert last_line(failed).startswith("companion: plugin_nonconformant: ")
    assert machine.row("lamp")["conformance"]["result"] == "failed"


@pytest.mark.parametrize("kind", ["runtime", "keychain"])
@pytest.mark.parametrize("name", ["echo", "a-rather-long-name"])
def test_a_new_plugin_passes_strict_types_and_the_linters_defaults(
    tmp_path: Path, kind: str, name: str
):
    assert main(["plugins", "new", kind, name, "--into", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    (package,) = folder.glob("companion_*")
    for command in (
        ["mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")],
        ["ruff", "check", "--isolated", "--no-cache"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command, package.name, "tests"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_locked_store_is_not_said_to_pass(machine: Machine):
    text = """
from companion_core import hookimpl
from companion_core.testing import FakeKeychain

@hookimpl
def companion_keychain():
    return FakeKeychain(locked=True)
"""
    package = "companion_runtime_vault"
    machine.install(
        "companion-vault",
        {f"{package}/__init__.py": text},
        {"vault": package},
        group="companion.authority.v1",
    )
    assert machine.plugins("trust", "vault", "--yes").returncode == 0
    checked = machine.plugins("check", "vault")
    assert checked.returncode == 4
    assert "passes" not in checked.stdout
    assert "rules 4 to 12" in checked.stderr
    assert last_line(checked).startswith("companion: keychain_locked: ")
    assert machine.row("vault")["conformance"]["result"] == "incomplete"


def test_a_runtime_that_is_installed_is_started_by_the_check(machine: Machine, tmp_path: Path):
    program = write_fake_runtime(tmp_path / "runtime")
    started = GOOD.replace("FakeSpawner()", f"FakeSpawner(program={str(program)!r})")
    machine.add("lamp", started)
    machine.plugins("trust", "lamp", "--yes")
    failed = machine.plugins("check", "lamp")
    assert failed.returncode == 3
    assert "runtime rule 3" in failed.stderr  # it prints the key that it was given


def test_an_unknown_plugin_is_told(machine: Machine):
    for verb in ("info", "check", "trust"):
        done = machine.plugins(verb, "nobody")
        assert done.returncode == 4
        assert last_line(done).startswith("companion: plugin_not_found: ")


def test_an_editable_install_needs_its_own_word(machine: Machine, tmp_path: Path):
    package = machine.site / "companion_runtime_lamp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(GOOD)
    origin = f'{{"url": "file://{machine.site}", "dir_info": {{"editable": true}}}}'
    machine.install(
        "companion-runtime-lamp",
        {},
        {"lamp": "companion_runtime_lamp"},
        extra={"direct_url.json": origin},
    )
    row = machine.row("lamp")
    assert (row["reason"], row["editable"]) == ("plugin_editable", True)
    assert row["fix"] == "companion plugins trust lamp --editable"
    refused = machine.plugins("trust", "lamp", "--yes")
    assert last_line(refused).startswith("companion: plugin_editable: ")
    assert machine.plugins("trust", "lamp", "--yes", "--editable").returncode == 0
    assert machine.row("lamp")["state"] == "registered"
    assert "(editable)" in machine.plugins("list").stdout


@pytest.mark.parametrize(
    "left", [".DS_Store", "__pycache__/plugin.cpython-311.pyc.140231", "plugin.py~"]
)
def test_what_other_programs_leave_in_the_folder_costs_no_trust(machine: Machine, left: str):
    folder = machine.add("lamp").parent
    machine.plugins("trust", "lamp", "--yes")
    (folder / left).parent.mkdir(exist_ok=True)
    (folder / left).write_text("left")
    assert machine.row("lamp")["state"] == "registered"


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("damage", ["stray", "link", "missing"])
def test_a_damaged_install_is_named_and_the_advice_leads_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, damage: str, trusted: bool
):
    folder = machine.add("lamp").parent
    if trusted:
        machine.plugins("trust", "lamp", "--yes")
    if damage == "stray":
        (folder / "extra file.py").write_text("")
    elif damage == "link":
        (folder / "extra").symlink_to(machine.site)
    else:
        (folder / "__init__.py").rename(folder / "aside.txt")
    row = machine.row("lamp")
    assert row["reason"] == "plugin_changed"
    named = {"stray": "extra file.py", "link": "extra", "missing": "__init__.py"}[damage]
    assert f"companion_runtime_lamp/{named}" in row["detail"]
    refused = machine.plugins("trust", "lamp", "--yes")
    assert f"companion_runtime_lamp/{named}" in refused.stderr

    if damage == "missing":
        assert row["fix"] == "pip install --force-reinstall --no-deps companion-runtime-lamp"
        machine.add("lamp")
    else:
        assert row["fix"].startswith("rm ")
        subprocess.run(row["fix"], shell=True, check=True)  # noqa: S602 - what a person would paste
    if not trusted:
        assert machine.plugins("trust", "lamp", "--yes").returncode == 0
    assert machine.row("lamp")["state"] == "registered"


def test_a_changed_editable_install_is_trusted_again_as_advised(machine: Machine):
    package = machine.site / "companion_runtime_lamp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(GOOD)
    origin = f'{{"url": "file://{machine.site}", "dir_info": {{"editable": true}}}}'
    machine.install(
        "companion-runtime-lamp",
        {},
        {"lamp": "companion_runtime_lamp"},
        extra={"direct_url.json": origin},
    )
    assert machine.plugins("trust", "lamp", "--yes", "--editable").returncode == 0
    (package / ".DS_Store").write_text("left by a file manager")
    assert machine.row("lamp")["state"] == "registered"

    (package / "__init__.py").write_text(GOOD + "#")
    row = machine.row("lamp")
    assert row["detail"] == "changed: companion_runtime_lamp/__init__.py"
    fix = row["fix"].removeprefix("companion plugins ").split()
    assert machine.plugins(*fix, "--yes").returncode == 0
    assert machine.row("lamp")["state"] == "registered"


def test_an_unreadable_store_trusts_no_plugin_and_stops_no_command(machine: Machine):
    machine.add("lamp")
    machine.plugins("trust", "lamp", "--yes")
    (machine.state / "plugins.json").write_text("{")
    listed = json.loads(machine.plugins("list", "--json").stdout)
    assert listed["store"] == "plugin_store_malformed"
    assert machine.row("lamp")["reason"] == "plugin_untrusted"
    refused = machine.plugins("trust", "lamp", "--yes")
    assert last_line(refused).startswith("companion: plugin_store_malformed: ")


def test_a_new_plugin_has_fewer_than_ten_files_and_a_name_it_can_have(tmp_path: Path, capsys):
    for kind in ("runtime", "keychain"):
        assert main(["plugins", "new", kind, "my-lamp", "--into", str(tmp_path), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        files = [path for path in Path(document["path"]).rglob("*") if path.is_file()]
        assert len(files) == len(document["files"]) < 10
        assert not any("{{" in file.read_text() for file in files)
        for file in files:
            if file.suffix == ".py":
                compile(file.read_text(), str(file), "exec")
        assert main(["plugins", "new", kind, "my-lamp", "--into", str(tmp_path)]) == 2
    for name in ("My", "a b", "../x", "-a", "a-", "x" * 65, "1a"):
        assert main(["plugins", "new", "runtime", "--into", str(tmp_path), "--", name]) == 2
    capsys.readouterr()
