"""`companion manifest` through the command line's own `main`, as CLI.md has it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from companion_core.cli import main
from companion_core.egress.refusing import RefusingEgress

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"a small model")
    return tmp_path


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["manifest", *arguments], egress=RefusingEgress())
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


ADD = ("add", "pub", "tiny.gguf", "--id", "tiny", "--url", URL, "--format", "gguf")


def test_the_publishers_four_commands(work: Path, shell: Shell) -> None:
    code, out, _ = shell("init", "pub", "--key-out", "key.pem")
    assert code == 0
    [key] = [line for line in out.splitlines() if line.startswith("ed25519:")]
    (work / "template").write_text("{{ messages }}")
    options = ("--licence", "MIT", "--chat-template-file", "template", "--json")
    code, out, _ = shell(*ADD, *options)
    assert code == 0
    added = json.loads(out)
    assert added["sha256"] == hashlib.sha256(b"a small model").hexdigest()
    assert (added["size"], added["name"]) == (13, "tiny.gguf")
    assert shell("sign", "pub", "--key", "key.pem", "--expires", "30d")[0] == 0
    code, out, _ = shell("sign", "pub", "--key", "key.pem", "--expires", "30d", "--json")
    assert (code, json.loads(out)["version"]) == (0, 2)
    code, out, _ = shell("verify", "pub/manifest.json", "--trusted-key", key, "--json")
    assert code == 0
    assert json.loads(out)["models"] == ["tiny"]
    assert shell("verify", "pub/manifest.json", "--trusted-key", key)[1].startswith("version 2")


def test_a_second_file_under_an_id_is_told_as_one_model_of_two(work: Path, shell: Shell) -> None:
    shell("init", "pub", "--key-out", "key.pem")
    assert len(shell(*ADD)[1].splitlines()) == 1
    assert len(shell(*ADD)[1].splitlines()) == 1, "the same name replaces the entry"
    second = ("add", "pub", "tiny.gguf", "--id", "tiny", "--format", "gguf")
    url = ("--url", URL.replace("tiny.gguf", "other.gguf"))
    _, out, _ = shell(*second, *url)
    assert out.splitlines()[1] == "tiny is one model of 2 files now: tiny.gguf, other.gguf"
    assert json.loads(shell(*second, *url, "--json")[1])["files"] == ["tiny.gguf", "other.gguf"]


def test_a_key_in_the_folder_that_will_be_published_is_pointed_out(
    work: Path, shell: Shell
) -> None:
    code, _, err = shell("init", "pub", "--key-out", "pub/key.pem")
    assert code == 0
    assert "pub/key.pem away" in err
    assert shell("init", "other", "--key-out", "other.pem")[2] == ""


def test_a_strangers_key_is_exit_3(work: Path, shell: Shell) -> None:
    shell("init", "pub", "--key-out", "key.pem")
    shell(*ADD)
    shell("sign", "pub", "--key", "key.pem", "--expires", "30d")
    stranger = shell("init", "other", "--key-out", "other.pem")[1].strip()
    code, out, err = shell("verify", "pub/manifest.json", "--trusted-key", stranger, "--json")
    assert code == 3
    assert json.loads(out) == {
        "ok": False,
        "reason": "manifest_signature_invalid",
        "advice": json.loads(out)["advice"],
    }
    assert err.splitlines()[-1].startswith("companion: manifest_signature_invalid: ")


def test_wrong_usage_is_exit_2(work: Path, shell: Shell) -> None:
    assert shell("init", "pub", "--key-out", "key.pem")[0] == 0
    assert shell("init", "pub", "--key-out", "other.pem")[0] == 2
    assert shell("add", "pub", "missing.gguf", *ADD[3:])[0] == 2
    assert shell(*ADD, "--chat-template-file", "missing")[0] == 2
    assert shell("sign", "pub", "--key", "key.pem", "--expires", "soon")[0] == 2
    assert shell("verify", "pub/manifest.json")[0] == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_without_a_writer_is_refused_and_not_waited_for(work: Path, shell: Shell) -> None:
    os.mkfifo("pipe")
    key = "ed25519:" + "A" * 43 + "="
    code, _, err = shell("verify", "pipe", "--trusted-key", key)
    assert code == 4
    first, last = err.splitlines()
    assert "pipe" in first
    assert last.startswith("companion: manifest_unavailable: ")
    assert shell("init", "site", "--key-out", "key.pem")[0] == 0
    entry = ("--id", "tiny", "--url", URL, "--format", "gguf")
    assert shell("add", "site", "pipe", *entry)[0] == 2
    (draft,) = Path("site").iterdir()
    draft.unlink()
    os.mkfifo(draft)
    code, _, err = shell("sign", "site", "--key", "key.pem", "--expires", "30d")
    assert code == 2
    assert "site" in err.splitlines()[0]


def test_an_http_address_is_exit_3(work: Path, shell: Shell) -> None:
    shell("init", "pub", "--key-out", "key.pem")
    insecure = URL.replace("https:", "http:")
    code, _, err = shell(*ADD[:5], "--url", insecure, "--format", "gguf")
    assert code == 3
    assert err.splitlines()[-1].startswith("companion: scheme_not_allowed: ")


def test_an_http_source_is_exit_3(work: Path, shell: Shell) -> None:
    shell("init", "pub", "--key-out", "key.pem")
    code, _, err = shell("add", "pub", URL.replace("https:", "http:"), *ADD[3:])
    assert code == 3
    assert err.splitlines()[-1].startswith("companion: scheme_not_allowed: ")


def test_a_missing_file_or_host_is_exit_4(work: Path, shell: Shell) -> None:
    shell("init", "pub", "--key-out", "key.pem")
    key = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert shell("verify", "pub/manifest.json", "--trusted-key", key)[0] == 4
    assert shell("add", "pub", URL, *ADD[3:])[0] == 4  # the doorway is shut
