"""Programs that people use answer through the gateway, once they are connected.

`llm` is tried in every run. The others are heavy: `make test-connect` installs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(700)]

LLM = Path(sys.prefix, "clients", "bin", "llm")
MODEL = Path(sys.prefix, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
INSTALLED = os.environ.get("COMPANION_TEST_PROGRAMS", "")
SECONDS = 600  # a small model may go on until its context is full, on two cores
# How each is asked one question without a person.
ASKED = {
    "claude-code": ["claude", "-p", "Say hello."],
    "codex": ["codex", "exec", "--skip-git-repo-check", "Say hello."],
    "continue": ["cn", "-p", "Say hello."],
    "opencode": ["opencode", "run", "Say hello."],
}


def environment_of(home: Path, *folders: Path) -> dict[str, str]:
    home.mkdir(mode=0o700, exist_ok=True)
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    kept = {name: os.environ[name] for name in ("LANG", "XDG_RUNTIME_DIR") if name in os.environ}
    return {**kept, "HOME": str(home), "PATH": path, "NO_PROXY": "127.0.0.1"}


def files_of(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")}


def test_llm_answers_with_its_own_key_and_follows_the_model_and_the_port(world):
    env = environment_of(world.folder / "home", LLM.parent)

    def companion(*arguments: str, code: int = 0) -> dict:
        done = world.companion("connect", *arguments, "--json", env=env)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LLM, "-m", "companion", "What are you?"],
            env=env, cwd=world.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    [row] = companion("llm")["clients"]
    assert row == {
        "name": "llm", "installed": True, "connected": True, "state": "ok", "detail": "",
    }  # fmt: skip
    answered = ask()
    assert "companion" in answered.stdout.lower(), answered.stderr
    metrics = world.companion("metrics").stdout
    assert 'client="connect-llm",reason="ok"} 1' in metrics
    assert world.companion("keys", "revoke", "connect-llm").returncode == 0
    assert ask().returncode != 0
    assert companion("--check", code=3)["reason"] == "client_drifted"
    assert companion("llm")["changed"] is True  # a running companion takes the new key at once
    assert ask().returncode == 0
    companion("llm", "--remove")
    left = files_of(world.folder / "home")
    assert not {name for name in left if name.endswith(("keys.json", "models.yaml"))}


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    """Return how a person whose companion serves a real model runs a command, and their home."""
    if not INSTALLED:
        pytest.skip("make test-connect installs these programs")
    folder = tmp_path_factory.mktemp("connected")
    home, state, config = folder / "home", folder / "state", folder / "companion.toml"
    config.write_text(
        '[keychain]\nname = "memory"\n[runtime]\ncontext_length = 32768\n'
        f'[models]\nkey_file = "{folder / "key.pem"}"\n'
    )
    env = environment_of(home, Path(INSTALLED))

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env=env, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip

    def companion(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = ("--config", str(config), "--state-dir", str(state))
        return run(sys.executable, "-m", "companion_core", *root, *arguments)

    added = companion("models", "add", str(MODEL), "--id", "smol", "--yes")
    assert added.returncode == 0, added.stderr
    assert companion("up", "--detach").returncode == 0
    try:
        yield run, companion, home
    finally:
        companion("down", "--now")


@pytest.mark.parametrize("name", ASKED)
def test_a_program_answers_through_the_gateway_and_is_taken_back(name, person):
    run, companion, home = person
    connected = companion("connect", name)
    assert connected.returncode == 0, connected.stderr
    before = companion("metrics").stdout
    answer = run(*ASKED[name])
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.strip()
    assert answered(companion("metrics").stdout) > answered(before)
    assert companion("connect", name, "--check").returncode == 0
    assert companion("connect", name, "--remove").returncode == 0
    texts = [path.read_bytes() for path in home.rglob("*.[jty]*") if path.is_file()]
    url = json.loads(companion("status", "--json").stdout)["gateway"]["url"]
    settings = [text for text in texts if b"provider" in text or b"apiKeyHelper" in text]
    assert not [text for text in settings if url.encode() in text]


def answered(metrics: str) -> int:
    """Return how many inference requests were answered well."""
    return sum(
        int(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('companion_request_seconds_count{path="/v1/') and 'reason="ok"' in line
        if "/v1/models" not in line
    )
