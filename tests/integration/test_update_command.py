"""`companion update` of real parts: in order, and a second run changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.authority.signing_key import KeyInFile
from companion_core.config.paths import InstancePaths
from companion_core.demo.run import MODEL_FILE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

NAMES = [
    "configuration",
    "plugins",
    "manifest",
    "own models",
    "model",
    "clients",
    "service",
    "restart",
]
DAY = 24 * 3600.0


@pytest.fixture
def me(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    home = world.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return world


def update(world: Any, *more: str, code: int = 0, **options: Any) -> dict[str, tuple[str, str]]:
    done = world.companion("update", "--json", *more, **options)
    assert done.returncode == code, done.stdout + done.stderr
    steps = json.loads(done.stdout.splitlines()[-1])["steps"]
    assert [step["name"] for step in steps] == NAMES
    return {step["name"]: (step["state"], step["detail"]) for step in steps}


def states(told: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: state for name, (state, _) in told.items()}


def publish_another(world: Any) -> bytes:
    """Have the publisher sign other bytes under the same id."""
    content = bytes(world.content) + bytes(32)
    world.model_host.content = {"/" + MODEL_FILE.name: content}
    world.publish(content=content)
    return content


def test_where_nothing_is_set_up_nothing_is_done(me: Any) -> None:
    me.config_file = me.folder / "none.toml"
    argv = me.argv("update", "--json")
    argv = [each for each in argv if each not in {"--config", str(me.config_file)}]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    found = {each["name"]: each["state"] for each in json.loads(done.stdout)["steps"]}
    assert found == dict.fromkeys(NAMES, "skipped") | {"plugins": "unchanged"}


def test_a_configuration_that_cannot_be_read_stops_the_rest(me: Any) -> None:
    me.config_file.write_text("[manifest\n")
    done = me.companion("update")
    assert done.returncode == 2
    assert done.stdout.count("waits for configuration") == len(NAMES) - 1
    assert "configuration_invalid" in done.stderr


def test_new_bytes_are_stored_before_the_old_ones_go_and_no_client_fails(me: Any) -> None:
    me.publish()
    me.configure(gateway={"requests_per_minute": 6000})
    assert me.companion("up", "--detach").returncode == 0
    key = json.loads(me.companion("keys", "add", "editor", "--json").stdout)["key"]
    client = openai.OpenAI(
        base_url=me.status()["gateway"]["url"], api_key=key, max_retries=8, timeout=60
    )
    assert states(update(me))["restart"] == "unchanged"

    before, content = me.status(), publish_another(me)
    ended, asked, failures = threading.Event(), [], []

    def keep_asking() -> None:
        while not ended.is_set():
            try:
                client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
                )
                asked.append(time.monotonic())
            except openai.OpenAIError as error:
                failures.append(error)

    worker = threading.Thread(target=keep_asking)
    worker.start()
    try:
        assert states(update(me, "--dry-run"))["manifest"] == "done"
        assert me.status()["pid"] == before["pid"]
        told = update(me)
        count = len(asked)
        deadline = time.monotonic() + 30
        while len(asked) < count + 3 and time.monotonic() < deadline and not failures:
            time.sleep(0.05)
    finally:
        ended.set()
        worker.join()
    assert (failures, len(asked) >= count + 3) == ([], True)
    assert {name: told[name][0] for name in ("manifest", "model", "restart")} == dict.fromkeys(
        ("manifest", "model", "restart"), "done"
    )
    after = me.status()
    assert after["pid"] != before["pid"]
    assert after["gateway"] == before["gateway"]
    assert after["manifest"]["version"] == before["manifest"]["version"] + 1
    assert len(content) in [path.stat().st_size for path in me.stored_models()]
    again = states(update(me))
    assert set(again.values()) == {"unchanged", "skipped"}
    assert me.status()["pid"] == after["pid"]


def test_what_serves_goes_on_where_a_step_fails(me: Any) -> None:
    me.publish()
    me.configure()
    assert me.companion("up", "--detach").returncode == 0
    before = me.status()
    me.publish(content=bytes(me.content) + bytes(32))  # the host has other bytes
    failed = me.companion("update")
    assert failed.returncode == 3
    assert "size_mismatch" in failed.stderr
    assert "waits for model" in failed.stdout
    assert me.status()["pid"] == before["pid"]
    assert me.status()["available"]


@pytest.mark.parametrize("step", ["manifest", "model", "service"])
def test_killed_after_any_step_the_next_run_comes_to_the_same_end(me: Any, step: str) -> None:
    me.publish()
    me.configure()
    assert me.companion("up", "--detach").returncode == 0
    before = me.status()
    publish_another(me)
    with subprocess.Popen(
        me.argv("update"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(step):
                process.send_signal(signal.SIGKILL)
                break
    update(me)
    after = me.status()
    assert after["available"]
    assert after["manifest"]["version"] == before["manifest"]["version"] + 1
    assert set(states(update(me)).values()) == {"unchanged", "skipped"}
    assert me.status()["pid"] == after["pid"]


def test_an_earlier_release_that_runs_is_replaced(me: Any, tmp_path: Path) -> None:
    me.publish()
    me.configure()
    (tmp_path / "sitecustomize.py").write_text(
        "import companion_core\ncompanion_core.__version__ = '0.0.1'\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert me.companion("up", "--detach", env=environ).returncode == 0
    before = me.status()
    assert before["version"] == "0.0.1"
    told = update(me)
    assert told["restart"][0] == "done"
    assert "companion-core 0.0.1 still runs" in told["restart"][1]
    assert me.status()["version"] != "0.0.1"
    assert states(update(me))["restart"] == "unchanged"


def test_a_companion_in_a_terminal_is_left_to_its_person(me: Any, tmp_path: Path) -> None:
    me.publish()
    me.configure()
    (tmp_path / "sitecustomize.py").write_text(
        "import companion_core\ncompanion_core.__version__ = '0.0.1'\n"
    )
    with subprocess.Popen(
        me.argv("up"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        deadline = time.monotonic() + 60
        while not me.status()["available"] and time.monotonic() < deadline:
            time.sleep(0.1)
        told = update(me)
        assert told["restart"][0] == "postponed"
        assert "end it where you started it" in told["restart"][1]
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130


def test_your_own_list_is_renewed_once_a_month_while_the_bytes_are_the_same(me: Any) -> None:
    file = me.folder / "model.gguf"
    file.write_bytes(me.content)
    key = me.folder / "own.pem"
    me.config_file.write_text(f"[keychain]\nname = 'memory'\n[models]\nkey_file = '{key}'\n")
    assert me.companion("models", "add", str(file)).returncode == 0
    assert states(update(me))["own models"] == "unchanged"
    paths = InstancePaths(me.state)
    long_ago = time.time() - 40 * DAY
    PersonalManifest(
        paths.own_manifest,
        keys=KeyInFile(key),
        memory=ManifestMemory.of(paths),
        clock=lambda: long_ago,
    ).renew()
    assert states(update(me, "--dry-run"))["own models"] == "done"
    assert states(update(me))["own models"] == "done"
    assert states(update(me))["own models"] == "unchanged"

    PersonalManifest(
        paths.own_manifest,
        keys=KeyInFile(key),
        memory=ManifestMemory.of(paths),
        clock=lambda: long_ago,
    ).renew()
    [stored] = me.stored_models()
    stored.chmod(0o600)
    stored.write_bytes(me.content[:-1] + b"\0")
    refused = me.companion("update")
    assert refused.returncode == 3
    assert "digest_mismatch" in refused.stderr


def test_what_is_connected_or_installed_is_led_to_what_is_true_now(me: Any) -> None:
    me.publish()
    me.configure()
    assert me.companion("up", "--detach").returncode == 0
    assert me.companion("connect", "llm").returncode == 0
    assert states(update(me))["clients"] == "unchanged"
    assert me.companion("down").returncode == 0
    (me.state / "instances" / "default" / "port").write_text("40999\n")
    told = update(me)
    assert told["clients"] == ("done", "llm")
    assert states(update(me))["clients"] == "unchanged"


def test_doctor_tells_and_mends_what_drifted(me: Any) -> None:
    me.publish()
    me.configure()

    def row(*more: str) -> tuple[str, str]:
        rows = json.loads(me.companion("doctor", "--json", *more).stdout)["rows"]
        (found,) = [each for each in rows if each["id"] == "clients"]
        return found["status"], found["reason"]

    assert row() == ("skip", "not_applicable")
    assert me.companion("up", "--detach").returncode == 0
    assert me.companion("connect", "llm").returncode == 0
    assert row() == ("ok", "ok")
    assert me.companion("down").returncode == 0
    (me.state / "instances" / "default" / "port").write_text("40999\n")
    assert row() == ("fail", "client_drifted")
    assert row("--repair") == ("repaired", "client_drifted")
    assert row() == ("ok", "ok")
