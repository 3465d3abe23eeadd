"""Several files of one model: a runtime opens the first, and learns the role of each."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from staging_parts import ALLOWED, Body, store_of

from companion_core.decisions.manifest import Manifest, verify_manifest
from companion_core.decisions.manifest_kind import Role
from companion_core.providers import DownloadRequest
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

SIGNED = {
    "sees.gguf": "projector",
    "chat-00002-of-00002.gguf": "model",
    "polite.gguf": "adapter",
    "chat-00001-of-00002.gguf": "model",
}


def test_the_first_part_is_staged_first_and_each_file_keeps_its_role(tmp_path: Path) -> None:
    document = manifest_document(ALLOWED[0] + "x", b"x")
    document["models"][0]["files"] = [
        {
            "name": name,
            "role": role,
            "size": len(name),
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "urls": [ALLOWED[0] + name],
        }
        for name, role in SIGNED.items()
    ]
    publisher = FakePublisher()
    manifest = verify_manifest(
        publisher.envelope(document),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)

    def download(request: DownloadRequest) -> Body:
        return Body(request.url.rpartition("/")[2].encode())

    staged = store_of(tmp_path / "models").stage(
        manifest.models[0], allowed_sources=ALLOWED, download=download
    )
    assert [(file.name, file.role) for file in staged.files] == [
        ("chat-00001-of-00002.gguf", Role.MODEL),
        ("chat-00002-of-00002.gguf", Role.MODEL),
        ("sees.gguf", Role.PROJECTOR),
        ("polite.gguf", Role.ADAPTER),
    ]
    staged.close()
