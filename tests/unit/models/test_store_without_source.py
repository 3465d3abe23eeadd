"""A file without a source is proved by the stored bytes alone, or refused; nothing is fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from companion_core.decisions.manifest import Manifest, ManifestModel, verify_manifest
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import Reason, Refused
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

DATA = b"a model of one's own"
DIGEST = hashlib.sha256(DATA).hexdigest()


def own_model() -> ManifestModel:
    person, document = FakePublisher(), manifest_document("https://a.example/x/own.gguf", DATA)
    document["models"][0]["files"][0]["urls"] = []
    document["allowed_sources"] = []
    kind = ManifestKind.PERSONAL
    manifest = verify_manifest(
        person.envelope(document, kind),
        trusted_keys=[person.public_key],
        now=TEST_NOW,
        last_seen=None,
        kind=kind,
    )
    assert isinstance(manifest, Manifest)
    return manifest.models[0]


def never(*_arguments: Any) -> Any:
    raise AssertionError("nothing may be fetched")


def stage(folder: Path) -> VerifiedModel:
    return ModelStore(folder).stage(own_model(), allowed_sources=(), download=never)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    return folder


def test_the_stored_bytes_are_the_model(folder: Path) -> None:
    (folder / DIGEST).write_bytes(DATA)
    model = stage(folder)
    assert model.files[0].sha256 == DIGEST
    model.close()


@pytest.mark.parametrize(
    ("content", "says"), [(None, "is gone"), (DATA[:-1] + b"!", "was changed")]
)
def test_anything_else_is_refused_and_left_for_the_person(
    folder: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (folder / DIGEST).write_bytes(content)
    with pytest.raises(Refused) as caught:
        stage(folder)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert says in caught.value.detail
    assert "models remove" in caught.value.detail
    assert (folder / DIGEST).exists() is (content is not None)
