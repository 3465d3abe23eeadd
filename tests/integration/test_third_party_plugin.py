"""A plugin from outside: written by `plugins new`, built and installed by pip, trusted, used."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from elsewhere import OFFLINE, Elsewhere, build

from companion_core.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(file.parent for file in (ROOT / "examples").glob("*/pyproject.toml"))
CLIENT = """
import openai
client = openai.OpenAI()
question = [{"role": "user", "content": "hello there"}]
ask = client.chat.completions.create
print(ask(model="tiny", messages=question).choices[0].message.content)
pieces = ask(model="tiny", messages=question, stream=True)
print("".join(p.choices[0].delta.content or "" for p in pieces if p.choices))
"""

PRODUCT = """
import asyncio, json, sys
from companion_core import Companion, CompanionError

config, state, pins = sys.argv[1:]

async def main():
    try:
        trusted = json.loads(pins)
        async with Companion.open(config, state_dir=state, trusted_plugins=trusted) as companion:
            question = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}]}
            answer = await companion.http_client().post("/chat/completions", json=question)
            print(answer.json()["choices"][0]["message"]["content"])
            print(companion.status().plugins["spawn"])
    except CompanionError as error:
        print(error.reason, error.detail)

asyncio.run(main())
"""


def link(elsewhere: Elsewhere, wheel: Path, tree: Path) -> None:
    """Install the wheel's facts and a link to the source tree, as `pip install -e` does."""
    elsewhere.pip("install", *OFFLINE, str(wheel))
    shutil.rmtree(elsewhere.site / "companion_runtime_echo")
    (elsewhere.site / "_companion_runtime_echo.pth").write_text(f"{tree}\n")
    (info,) = elsewhere.site.glob("companion_runtime_echo-*.dist-info")
    origin = {"url": tree.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(origin))


@pytest.mark.parametrize("where", ["target", "user"])
def test_an_embedded_runtime_that_its_interpreter_cannot_see_is_refused_before_the_start(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    wheel = build(elsewhere, tmp_path)
    site = tmp_path / "target"
    if where == "user":
        monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
        site = tmp_path / "user" / elsewhere.site.relative_to(elsewhere.python.parents[1])
        config = elsewhere.python.parents[1] / "pyvenv.cfg"
        config.write_text(config.read_text().replace("packages = false", "packages = true"))
    else:
        monkeypatch.setenv("PYTHONPATH", str(site))
    elsewhere.pip("install", *OFFLINE, "--target", str(site), str(wheel))
    trusted = elsewhere.companion("plugins", "trust", "echo", "--yes")
    assert trusted.returncode == 0, trusted.stderr
    up = elsewhere.companion("up", "--detach")
    assert up.returncode == 4
    assert last_line(up).startswith("companion: embedded_unreachable: ")
    assert str(site) in up.stderr
    report = json.loads(elsewhere.companion("doctor", "--json").stdout)
    row = next(row for row in report["rows"] if row["id"] == "binary")
    assert (row["status"], row["reason"]) == ("fail", "embedded_unreachable")


def test_a_linked_source_tree_serves_under_isolation(elsewhere: Elsewhere, tmp_path: Path):
    wheel = build(elsewhere, tmp_path)
    link(elsewhere, wheel, tmp_path / "companion-runtime-echo")
    trusted = elsewhere.companion("plugins", "trust", "echo", "--yes", "--editable")
    assert trusted.returncode == 0, trusted.stderr
    up = elsewhere.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["plugins"]["spawn"] == "echo"
    assert elsewhere.companion("down").returncode == 0


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_a_plugin_from_outside_is_trusted_by_one_command_and_serves(
    elsewhere: Elsewhere, tmp_path: Path
):
    for kind, name in (("runtime", "echo"), ("keychain", "vault")):
        assert main(["plugins", "new", kind, name, "--into", str(tmp_path)]) == 0
    trees = [tmp_path / "companion-runtime-echo", tmp_path / "companion-keychain-vault"]
    elsewhere.install(trees, tmp_path / "wheels")
    world = elsewhere.world
    world.publish()
    world.configure(runtime={"name": "echo", "threads": 1}, keychain={"name": "vault"})

    found = elsewhere.plugin("echo")
    assert (found["state"], found["reason"]) == ("found", "plugin_untrusted")
    assert found["fix"] == "companion plugins trust echo"
    refused = elsewhere.companion("up", "--detach")
    assert refused.returncode == 3
    assert last_line(refused).startswith("companion: plugin_untrusted: ")

    assert elsewhere.companion("plugins", "trust", "vault", "--yes").returncode == 0
    assert elsewhere.companion("plugins", "check", "vault").returncode == 0
    trusted = elsewhere.companion("plugins", "trust", "echo", "--yes", "--json")
    assert trusted.returncode == 0, trusted.stderr
    assert json.loads(trusted.stdout)["hooks"] == ["companion_health", "companion_spawn"]
    checked = elsewhere.companion("plugins", "check", "echo", "--json")
    assert checked.returncode == 0, checked.stderr
    found = elsewhere.plugin("echo")
    assert found["state"] == "selected"
    assert found["selected_for"] == ["health", "spawn"]
    assert found["conformance"]["result"] == "passed"

    up = elsewhere.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    chosen = json.loads(up.stdout)["plugins"]
    assert (chosen["spawn"], chosen["health"], chosen["keychain"]) == ("echo", "echo", "vault")
    client = elsewhere.companion("exec", "--", str(elsewhere.python), "-c", CLIENT)
    assert client.returncode == 0, client.stderr
    assert client.stdout.splitlines() == ["You said: hello there"] * 2
    assert elsewhere.companion("down").returncode == 0

    # The plugin passed the kit; now one byte of it changes.
    module = elsewhere.site / "companion_runtime_echo" / "server.py"
    module.write_bytes(module.read_bytes() + b"\n")
    refused = elsewhere.companion("up", "--detach")
    assert refused.returncode == 3
    assert last_line(refused).startswith("companion: plugin_changed: ")
    assert "echo: companion-runtime-echo 0.1.0: changed: companion_runtime_echo/server.py" in (
        refused.stderr
    )
    found = elsewhere.plugin("echo")
    assert found["changes"] == ["changed: companion_runtime_echo/server.py"]
    assert found["conformance"] is None

    elsewhere.pip("uninstall", "--yes", "companion-runtime-echo")
    missing = elsewhere.companion("up", "--detach")
    assert missing.returncode == 4
    assert "spawn: echo" in missing.stderr
    assert last_line(missing).startswith("companion: provider_missing: ")
    assert world.wait_until_alone() == []


def test_the_examples_install_and_pass_the_kit(elsewhere: Elsewhere, tmp_path: Path):
    elsewhere.install(EXAMPLES, tmp_path / "wheels")
    for name in ("llamafile", "mlx"):
        trusted = elsewhere.companion("plugins", "trust", name, "--yes")
        assert trusted.returncode == 0, trusted.stderr
        checked = elsewhere.companion("plugins", "check", name, "--json")
        assert json.loads(checked.stdout).get("passed") == ["health", "spawn"], checked.stderr


def test_a_product_ships_a_plugin_that_it_pins_and_no_other_code_runs(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere.pip("install", *OFFLINE, str(build(elsewhere, tmp_path)))
    info = elsewhere.plugin("echo")
    pinned = {"echo": info["digest"]}
    file = tmp_path / "pins.json"
    file.write_text(json.dumps(pinned))

    def product(pins: object) -> list[str]:
        """Return what the product prints that opens its own companion."""
        config, state = str(elsewhere.world.config_file), str(elsewhere.world.state)
        program = [str(elsewhere.python), "-c", PRODUCT, config, state, json.dumps(pins)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
        assert done.stdout, done.stderr
        return done.stdout.splitlines()

    assert product({})[0].startswith("plugin_untrusted ")
    assert product({"echo": "0" * 64})[0].startswith("plugin_changed ")
    assert product({"Echo!": info["digest"]})[0].startswith("configuration_invalid ")
    served = ["You said: hello there", "echo"]
    assert product(pinned) == served
    assert product(str(file)) == served  # the file that the product ships
    assert elsewhere.plugin("echo")["state"] == "found"  # the person's own trust is unchanged
    monkeypatch.setenv("COMPANION_PLUGINS", "")
    assert product(pinned)[0].startswith("plugin_narrowed ")
    monkeypatch.delenv("COMPANION_PLUGINS")

    module = elsewhere.site / "companion_runtime_echo" / "server.py"
    module.write_bytes(module.read_bytes() + b"\n")
    assert product(pinned)[0].startswith("plugin_changed ")
    assert elsewhere.world.wait_until_alone() == []
