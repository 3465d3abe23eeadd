"""The manifest and the store are judged as a start would judge them, and nothing is written."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from doctor_parts import make_config, make_row, make_situation

from companion_core.authority import publisher
from companion_core.doctor import model
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status, fine
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

CONTENT = b"the bytes of a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Publisher:
    def __init__(self, folder: Path) -> None:
        self.draft = folder / "publisher"
        self.key = folder / "publisher.key"
        self.public_key = publisher.init_draft(self.draft, self.key)
        publisher.add_file(
            self.draft,
            publisher.measure(io.BytesIO(CONTENT).readinto),
            model_id="tiny",
            url="https://models.example.org/tiny.gguf",
            model_format="gguf",
        )

    def sign(self, **days: float) -> Path:
        lifetime = dt.timedelta(**(days or {"days": 1}))
        now = dt.datetime.now(dt.UTC)
        if lifetime < dt.timedelta():
            now, lifetime = now + 2 * lifetime, -lifetime
        return publisher.sign_draft(self.draft, self.key, lifetime=lifetime, now=now).path


@pytest.fixture
def author(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


def look(tmp_path, author=None, *, model_id="tiny", key=None):
    situation = make_situation(tmp_path)
    if author is not None:
        url = (author.draft / "manifest.json").as_uri()
        situation.config = make_config(
            manifest={"url": url, "trusted_keys": [key or author.public_key]},
            model={"id": model_id},
        )
    for id_ in ("state-access", "configuration"):
        situation.rows[id_] = make_row(id_, fine())
    return {row.id: row for row in run_checks(model.checks(), situation)}


def test_a_good_manifest_is_told_with_its_days_and_not_remembered(tmp_path, author):
    author.sign()
    row = look(tmp_path, author)["manifest"]
    assert row.status is Status.OK
    assert "1.0 days left" in row.finding.detail
    assert not make_situation(tmp_path).paths.manifest_memory.exists()
    assert not make_situation(tmp_path).paths.root.exists()


def test_a_manifest_that_a_start_would_refuse_is_told(tmp_path, author):
    assert look(tmp_path, author)["manifest"].reason is Reason.MANIFEST_UNAVAILABLE
    author.sign()
    assert look(tmp_path, author, model_id="x")["manifest"].reason is Reason.MODEL_NOT_IN_MANIFEST
    (tmp_path / "other").mkdir()
    row = look(tmp_path, author, key=Publisher(tmp_path / "other").public_key)["manifest"]
    assert row.reason is Reason.MANIFEST_SIGNATURE_INVALID
    author.sign(days=-1)
    assert look(tmp_path, author)["manifest"].reason is Reason.MANIFEST_EXPIRED


def test_an_older_manifest_than_the_one_seen_is_told(tmp_path, author):
    author.sign()
    paths = make_situation(tmp_path).paths
    paths.prepare()
    keys = hashlib.sha256(author.public_key.encode()).hexdigest()
    seen = {"latest_time": 1, "seen": {keys: {"version": 99, "payload_sha256": "0" * 64}}}
    paths.manifest_memory.write_text(json.dumps(seen))
    paths.manifest_memory.chmod(0o600)
    assert look(tmp_path, author)["manifest"].reason is Reason.MANIFEST_ROLLED_BACK


def store(tmp_path, name=DIGEST, content=CONTENT):
    paths = make_situation(tmp_path).paths
    paths.prepare()
    path = paths.models / name
    path.write_bytes(content)
    path.chmod(0o400)
    return path


def test_an_empty_store_is_no_failure(tmp_path):
    assert look(tmp_path)["models"].status is Status.SKIP


def test_every_stored_file_is_hashed_again(tmp_path, author):
    author.sign()
    store(tmp_path)
    row = look(tmp_path, author)["models"]
    assert row.status is Status.OK
    assert "each is what its name says; tiny is among them" in row.finding.detail


@pytest.mark.data_integrity
@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"T" + CONTENT[1:]])
def test_a_changed_byte_is_told(tmp_path, content):
    store(tmp_path, content=content)
    row = look(tmp_path)["models"]
    assert (row.status, row.reason) == (Status.FAIL, Reason.DIGEST_MISMATCH)
    assert row.finding.fix == "companion up"


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX systems")
def test_a_link_and_a_file_of_others_are_told(tmp_path):
    path = store(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert look(tmp_path)["models"].reason is not Reason.OK
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    path.chmod(0o666)
    assert look(tmp_path)["models"].reason is Reason.STATE_PATH_UNSAFE


def test_other_files_of_the_store_are_not_taken_for_models(tmp_path):
    store(tmp_path, name=".lock")
    assert look(tmp_path)["models"].status is Status.SKIP
