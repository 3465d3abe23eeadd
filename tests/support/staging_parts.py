"""A store of models, and downloaders in memory that give it bytes or fail."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from companion_core.decisions.manifest import Manifest, ManifestModel, verify_manifest
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.models.byte_pump import Pace
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.providers import DownloadFailed, DownloadRequest
from companion_core.system.clock import wall_now
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

URL = "https://models.example.org/companion/tiny.gguf"
ALLOWED = ("https://models.example.org/companion/",)
DATA = b"GGUF" + bytes(range(256)) * 9000  # a little over two blocks


class Body(io.RawIOBase):
    """A downloader's stream, which may end in a failure."""

    def __init__(self, data: bytes, *, length: Any = None, failure: Exception | None = None):
        self._data = io.BytesIO(data)
        self._failure = failure
        self.length = length
        self.validator: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._data.readinto(buffer)
        if count == 0 and self._failure is not None:
            raise self._failure
        return count


def model_of(data: bytes = DATA, *urls: str) -> ManifestModel:
    publisher = FakePublisher()
    document = manifest_document(URL, data)
    document["models"][0]["files"][0]["urls"] = list(urls or (URL,))
    manifest = verify_manifest(
        publisher.envelope(document),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)
    return manifest.models[0]


def store_of(folder: Path, **pace: float) -> ModelStore:
    return ModelStore(folder, pace=Pace(**pace), sleep=lambda _seconds: None)


def stage(
    folder: Path,
    download: Callable[[DownloadRequest], Any],
    model: ManifestModel | None = None,
    **options: Any,
) -> VerifiedModel:
    store = options.pop("store", None) or store_of(folder)
    chosen = model_of() if model is None else model
    return store.stage(chosen, allowed_sources=ALLOWED, download=download, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def good(_request: DownloadRequest) -> Body:
    return Body(DATA, length=len(DATA))


def breaking(after: int, validator: str | None = '"v1"') -> Callable[[DownloadRequest], Body]:
    """Return a downloader that honours ranges and fails for good after so many bytes."""

    def download(request: DownloadRequest) -> Body:
        broken = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        body = Body(DATA[request.offset : after], failure=broken)
        body.validator = validator
        return body

    return download


def leave(
    folder: Path, digest: str, *, age: float = 0, validator: str | None = '"v1"', size: int = 1000
) -> Path:
    """Leave ten received bytes of another model of `size` bytes, and their record."""
    part = folder / f".{digest}.part"
    record = {"size": size, "source": "0" * 64, "validator": validator}
    for path, content in {
        part: b"0123456789",
        part.with_suffix(".resume"): json.dumps(record).encode(),
    }.items():
        path.write_bytes(content)
        path.chmod(0o600)
    os.utime(part, (wall_now() - age,) * 2)
    return part


def have_free(monkeypatch: pytest.MonkeyPatch, count: Callable[[], int]) -> None:
    """Have the disk say that so many bytes are free."""
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 60, 0, count()))


def cut_off(folder: Path, after: int) -> None:
    """Leave in the store what a run leaves that was cut off after so many bytes."""
    with pytest.raises(EnvironmentUnavailable) as caught:
        stage(folder, breaking(after))
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
