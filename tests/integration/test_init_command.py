"""`companion init`: what it finds on a real machine, what it writes, and what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MINE = "# of this machine\n[runtime]\nthreads = 1  # it is small\n\n[gateway]\nport = 0\n"


@pytest.fixture
def me(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A person without a keychain, who has a llama-server on PATH and a GGUF file."""
    world.file = world.folder / "small.gguf"
    world.file.write_bytes(world.content)
    world.server = world.folder / "bin" / "llama-server"
    world.server.parent.mkdir(mode=0o755)
    build(world.server, "the first build")
    monkeypatch.setenv("PATH", f"{world.server.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(world.folder))  # where a bus could be as well
    return world


def build(program: Path, version: str) -> str:
    """Write another build of a program; return its digest."""
    program.write_text(f"#!/bin/sh\nexit 0 # {version}\n", encoding="utf-8")
    program.chmod(0o755)
    return hashlib.sha256(program.read_bytes()).hexdigest()


def row(world: Any, name: str) -> Any:
    report = json.loads(world.companion("doctor", "--json").stdout)
    return next(each for each in report["rows"] if each["id"] == name)


def answer_on_a_terminal(world: Any, words: str, *arguments: str) -> tuple[int, str]:
    """Type `words` at the question of a command; return its exit code and what it printed."""
    primary, secondary = pty.openpty()
    os.write(primary, words.encode())
    try:
        done = subprocess.run(
            world.argv(*arguments),
            stdin=secondary,
            stdout=subprocess.PIPE,
            stderr=secondary,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(secondary)
        os.close(primary)
    return done.returncode, done.stdout


def test_from_nothing_to_a_model_that_is_served(me: Any) -> None:
    me.config_file = me.folder / "config" / "companion.toml"
    done = me.companion("init", "--model", str(me.file))
    assert done.returncode == 0, done.stderr
    text = me.config_file.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    assert document["runtime"] == {"name": "llamacpp", "binary": "embedded"}
    assert document["keychain"] == {"name": "memory"}
    assert document["models"] == {"key_file": str(me.state / "own" / "key.pem")}
    assert document["model"] == {"id": "small"}
    assert f'# binary = "{me.server}"' in text  # what else was found, with its digest
    assert f'# binary_sha256 = "{build(me.server, "the first build")}"' in text
    assert "models.key_file" in done.stderr

    again = me.companion("init", "--json")
    assert json.loads(again.stdout)["written"] is None
    assert me.config_file.read_text(encoding="utf-8") == text
    served = me.companion("run", "small", "How do I stop it?")
    assert "companion down" in served.stdout, served.stderr


def test_what_a_person_wrote_is_added_to_once_they_say_yes(me: Any) -> None:
    me.config_file.write_text(MINE, encoding="utf-8")
    me.config_file.chmod(0o644)
    shown = me.companion("init")
    assert shown.returncode == 0, shown.stderr
    assert '+binary = "embedded"' in shown.stdout
    assert "threads" not in shown.stdout  # only what is added
    assert "companion init --yes writes it" in shown.stdout
    code, _ = answer_on_a_terminal(me, "n\n", "init")
    assert code == 130
    assert me.config_file.read_text(encoding="utf-8") == MINE

    code, _ = answer_on_a_terminal(me, "y\n", "init")
    assert code == 0
    written = me.config_file.read_text(encoding="utf-8")
    rest = iter(written.splitlines())
    assert all(line in rest for line in MINE.splitlines())  # in its order
    assert tomllib.loads(written)["runtime"]["threads"] == 1
    assert me.config_file.stat().st_mode & 0o777 == 0o644


def test_an_upgraded_program_is_recorded_when_the_person_accepts_it(me: Any) -> None:
    first = build(me.server, "the first build")
    me.config_file.write_text(f"[runtime]\nbinary = '{me.server}'\n", encoding="utf-8")
    assert me.companion("init", "--yes").returncode == 0
    before = me.config_file.read_text(encoding="utf-8")
    assert tomllib.loads(before)["runtime"]["binary_sha256"] == first
    assert row(me, "binary")["status"] == "ok"

    second = build(me.server, "the second build")
    refused = row(me, "binary")
    assert refused["reason"] == "runtime_changed"
    assert "companion init --accept-runtime" in refused["advice"]
    told = me.companion("init", "--yes")
    assert "companion init --accept-runtime" in told.stderr
    assert me.config_file.read_text(encoding="utf-8") == before  # a yes to that is its own

    accepted = me.companion("init", "--accept-runtime", "--json")
    assert json.loads(accepted.stdout) == {
        "ok": True, "changed": True, "binary": str(me.server), "sha256": second,
    }  # fmt: skip
    assert me.config_file.read_text(encoding="utf-8") == before.replace(first, second)
    assert row(me, "binary")["status"] == "ok"


def test_a_program_that_others_can_replace_is_not_offered(me: Any) -> None:
    me.server.parent.chmod(0o777)
    done = me.companion("init")
    assert done.returncode == 0, done.stderr
    assert "llama-server is left out: runtime_unsafe" in done.stderr
    assert str(me.server) not in me.config_file.read_text(encoding="utf-8")


def test_a_publisher_is_named_with_its_keys_and_never_replaced(me: Any) -> None:
    url = "https://models.example.org/companion/manifest.json"
    options = ("--manifest", url, "--trusted-key", me.public_key)
    assert me.companion("init", *options).returncode == 0
    document = tomllib.loads(me.config_file.read_text(encoding="utf-8"))
    assert document["manifest"] == {"url": url, "trusted_keys": [me.public_key]}
    other = me.companion("init", "--manifest", url + "2", "--trusted-key", me.public_key, "--yes")
    assert other.returncode == 2
    assert tomllib.loads(me.config_file.read_text(encoding="utf-8")) == document
