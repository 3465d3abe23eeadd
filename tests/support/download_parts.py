"""A downloader and a store that fetch from a model host over real TLS."""

from __future__ import annotations

import os
from typing import BinaryIO

import pytest

from companion_core.decisions.manifest import Manifest, ManifestModel, verify_manifest
from companion_core.errors import CompanionError, Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.providers import DownloadRequest
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

PATH = "/companion/tiny.gguf"
DATA = os.urandom(1_500_000)


class Counted:
    """Counts the requests: on a busy machine not each of them reaches the host in time."""

    def __init__(self, downloader: HttpsDownloader) -> None:
        self.opened = 0
        self._downloader = downloader

    def open(self, request: DownloadRequest) -> BinaryIO:
        self.opened += 1
        return self._downloader.open(request)


def model_of(url: str) -> tuple[ManifestModel, tuple[str, ...]]:
    publisher = FakePublisher()
    manifest = verify_manifest(
        publisher.envelope(manifest_document(url, DATA)),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)
    return manifest.models[0], manifest.allowed_sources


def stage(store: ModelStore, downloader: HttpsDownloader | Counted, url: str) -> bytes:
    model, allowed = model_of(url)
    verified = store.stage(model, allowed_sources=allowed, download=downloader.open)
    try:
        return os.pread(verified.files[0].descriptor, len(DATA) + 1, 0)
    finally:
        verified.close()


def refusal(store: ModelStore, downloader: HttpsDownloader | Counted, url: str) -> Reason:
    with pytest.raises(CompanionError) as caught:
        stage(store, downloader, url)
    assert list(store._folder.iterdir()) == []
    return caught.value.reason
