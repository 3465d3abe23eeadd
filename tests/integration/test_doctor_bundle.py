"""Attacker: a reader of a support request. Secrets are planted wherever one could come from."""

from __future__ import annotations

import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest
from doctor_parts import PUBLIC_KEY, make_situation, make_survey, plugin

from companion_core.doctor import bundle, examine
from companion_core.doctor.bundle import new_bundle, write_bundle
from companion_core.doctor.report import Report
from companion_core.errors import CompanionError, Reason

pytestmark = pytest.mark.security

DIGEST = "0123456789abcdef" * 4
PLANTED = [
    "planted-in-url",
    "planted-option",
    "planted-proxy",
    "planted-bearer",
    "planted-password",
    "planted-prompt",
    "planted words of a story",
    "planted diagnosis",
    "planted-session-token",
    "planted-detail",
    DIGEST,
    PUBLIC_KEY,
    PUBLIC_KEY.removeprefix("ed25519:"),
    "alice",
]

CONFIGURATION = f"""
manifest.url = "https://models.example.org/manifest.json?token=planted-in-url"
manifest.trusted_keys = ["{PUBLIC_KEY}"]
model.id = "tiny"
runtime.binary = "/home/alice/llama-server"
runtime.binary_sha256 = "{DIGEST}"
runtime.options.api_key = "planted-option"
keychain.name = "memory"
"""
LOG = f"""srv  load_model: loading model '/home/alice/models/{DIGEST}'
srv  init: Authorization: Bearer planted-bearer
main: password=planted-password
srv  update: prompt = "planted-prompt"
planted words of a story
Patient: planted diagnosis
[INST] planted diagnosis [/INST]
http: token planted-session-token was used
llama_model_loader: n_ctx = 512
"""


@pytest.fixture
def situation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    config = home / "companion.toml"
    config.write_text(CONFIGURATION)
    config.chmod(0o600)
    environ = {"HOME": str(home), "https_proxy": "http://x:planted-proxy@proxy.example"}
    documents = [
        plugin("lamp", "plugin_import_failed", digest=DIGEST, detail=f"sk-planted-detail {DIGEST}")
    ]
    situation = make_situation(
        home, config_file=lambda: config, environ=environ, survey=lambda: make_survey(*documents)
    )
    situation.paths.prepare()
    log = situation.paths.logs / "runtime.log"
    log.write_text(LOG)
    log.chmod(0o600)
    (situation.paths.logs / "elsewhere.log").symlink_to(config)
    # In place of a running companion, which would have a token of its own.
    monkeypatch.setattr(bundle, "ask", lambda *_: {"token": "planted-session-token"})
    return situation


def pack(path: Path, situation) -> dict[str, str]:
    report = examine(situation)
    situation.running = object()
    with new_bundle(path) as archived:
        write_bundle(archived, report, situation)
    with tarfile.open(path) as archive:
        files = {}
        for entry in archive:
            assert entry.isfile()
            assert entry.mode == 0o600
            file = archive.extractfile(entry)
            assert file is not None
            files[entry.name.removeprefix("companion-doctor/")] = file.read().decode()
    return files


@pytest.mark.parametrize("secret", PLANTED)
def test_no_planted_secret_is_in_the_bundle(tmp_path, situation, secret):
    files = pack(tmp_path / "bundle.tar.gz", situation)
    for name, text in files.items():
        assert secret not in text, name


def test_the_bundle_has_what_helps(tmp_path, situation):
    files = pack(tmp_path / "bundle.tar.gz", situation)
    assert set(files) == {
        "README.txt", "report.json", "versions.json", "plugins.json", "configuration.json",
        "logs/runtime.log",
    }  # fmt: skip
    assert "llama_model_loader: n_ctx = 512" in files["logs/runtime.log"]
    assert json.loads(files["plugins.json"])[0]["distribution"] == "companion-runtime-lamp"
    configuration = json.loads(files["configuration.json"])
    assert configuration["manifest.url"]["value"] == '"https://models.example.org/manifest.json"'
    assert configuration["model.id"] == {"value": '"tiny"', "source": "file"}
    report = json.loads(files["report.json"])
    assert report["reason"] in set(Reason)
    assert {"I-01", "I-18", "plugin.lamp"} <= {row["id"] for row in report["rows"]}
    assert "python" in json.loads(files["versions.json"])


def test_a_log_that_cannot_be_read_takes_no_other_with_it(tmp_path, situation, monkeypatch):
    (situation.paths.logs / "companion.log").write_text("companion: ok\n")
    read = bundle._tail

    def fail_once(path: Path) -> list[str]:
        if path.name == "companion.log":
            raise PermissionError
        return read(path)

    # Root, which the tests may run as, reads what a mode forbids: so the reading itself fails.
    monkeypatch.setattr(bundle, "_tail", fail_once)
    files = pack(tmp_path / "bundle.tar.gz", situation)
    assert [name for name in files if name.startswith("logs/")] == ["logs/runtime.log"]


def test_only_its_owner_can_read_the_bundle(tmp_path, situation):
    before = os.umask(0)
    try:
        pack(tmp_path / "bundle.tar.gz", situation)
    finally:
        os.umask(before)
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "bundle.tar.gz").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_bundle_overwrites_no_file_and_follows_no_link(tmp_path, kind):
    path, letter = tmp_path / "bundle.tar.gz", tmp_path / "letter.txt"
    letter.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(letter if kind == "link" else tmp_path / "nothing")
    with pytest.raises(CompanionError) as caught, new_bundle(path):
        pass
    assert caught.value.reason is Reason.USAGE
    assert letter.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_is_not_there_is_the_disks_fault(tmp_path):
    with pytest.raises(CompanionError) as caught, new_bundle(tmp_path / "none" / "bundle.tar.gz"):
        pass
    assert caught.value.reason is Reason.DISK_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "full"), CompanionError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_half_an_archive_does_not_stay(tmp_path, situation, error, raised):
    class Unfinished(Report):
        def document(self):
            raise error

    path = tmp_path / "bundle.tar.gz"
    report = examine(situation)
    unfinished = Unfinished(rows=report.rows, judgement=report.judgement)
    with pytest.raises(raised), new_bundle(path) as file:
        write_bundle(file, unfinished, situation)
    assert not path.exists()
