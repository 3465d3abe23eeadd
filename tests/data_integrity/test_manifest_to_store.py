"""Each bad input of the main job, from the manifest's host to the store: nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.data_integrity

MODEL = "/companion/tiny.gguf"
MANIFEST = "/companion/manifest.json"
DATA = os.urandom(1_200_000)
PUBLISHER = FakePublisher()
STRANGER = FakePublisher(b"\7" * 32)


class World:
    """A model host, a manifest host, and a person's empty state folder."""

    def __init__(self, folder: Path, models: ModelHost, manifests: ModelHost, ca: Path) -> None:
        self.models = models
        self.manifests = manifests
        self.store = folder / "models"
        self._memory = folder / "state" / "memory.json"
        self._context = build_tls_context(ca)

    def publish(self, publisher: FakePublisher = PUBLISHER, **changes: Any) -> None:
        document = manifest_document(self.models.url(MODEL), DATA, **changes)
        self.manifests.content = {MANIFEST: publisher.envelope(document)}

    def publish_file(self, **changes: Any) -> None:
        document = manifest_document(self.models.url(MODEL), DATA)
        document["models"][0]["files"][0].update(changes)
        self.manifests.content = {MANIFEST: PUBLISHER.envelope(document)}

    def run(self) -> VerifiedModel:
        manifest = fetch_manifest(
            self.manifests.url(MANIFEST),
            egress=LiveEgress(),
            context=self._context,
            trusted_keys=[PUBLISHER.public_key],
            memory=ManifestMemory(self._memory),
            wall_now=TEST_NOW,
        )
        downloader = HttpsDownloader(LiveEgress(), lambda: self._context)
        return ModelStore(self.store, sleep=lambda _seconds: None).stage(
            manifest.models[0],
            allowed_sources=manifest.allowed_sources,
            download=downloader.open,
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    authority = CertificateAuthority(tmp_path)
    with (
        ModelHost(authority.server_context(), {MODEL: DATA}) as models,
        ModelHost(authority.server_context(), {}, name="localhost") as manifests,
    ):
        yield World(tmp_path, models, manifests, authority.ca_file)


def wrong_signature(world: World) -> None:
    world.publish(STRANGER)


def expired(world: World) -> None:
    world.publish(expires="2026-01-10T00:00:00Z")


def other_digest(world: World) -> None:
    world.publish_file(sha256="0" * 64)


def larger_size(world: World) -> None:
    world.publish_file(size=len(DATA) + 1)


def smaller_size(world: World) -> None:
    world.publish_file(size=len(DATA) - 1)


def one_flipped_bit(world: World) -> None:
    world.publish()
    world.models.misbehave = Misbehaviour(flip_bit=4_242)


def longer_stream(world: World) -> None:
    world.publish()
    world.models.misbehave = Misbehaviour(extra=1, unannounced=True)


def shorter_stream(world: World) -> None:
    world.publish()
    world.models.content = {MODEL: DATA[:-1]}


def http_address(world: World) -> None:
    world.publish_file(urls=[world.models.url(MODEL).replace("https:", "http:")])


def model_host_is_manifest_host(world: World) -> None:
    url = f"https://localhost:{world.models.port}{MODEL}"
    world.manifests.content = {MANIFEST: PUBLISHER.envelope(manifest_document(url, DATA))}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_signature, Reason.MANIFEST_SIGNATURE_INVALID),
        (expired, Reason.MANIFEST_EXPIRED),
        (other_digest, Reason.DIGEST_MISMATCH),
        (larger_size, Reason.SIZE_MISMATCH),
        (smaller_size, Reason.SIZE_MISMATCH),
        (one_flipped_bit, Reason.DIGEST_MISMATCH),
        (longer_stream, Reason.SIZE_MISMATCH),
        (shorter_stream, Reason.SIZE_MISMATCH),
        (http_address, Reason.SCHEME_NOT_ALLOWED),
        (model_host_is_manifest_host, Reason.MANIFEST_UNTRUSTED),
    ],
)
def test_bad_input_leaves_nothing_in_the_store(
    world: World, spoil: Callable[[World], None], reason: Reason
) -> None:
    spoil(world)
    with pytest.raises(CompanionError) as caught:
        world.run()
    assert (caught.value.reason, caught.value.exit_code) == (reason, 3)
    assert not world.store.exists() or list(world.store.iterdir()) == []


def test_the_same_world_unspoiled_is_verified(world: World) -> None:
    world.publish()
    verified = world.run()
    assert os.pread(verified.files[0].descriptor, len(DATA) + 1, 0) == DATA
    verified.close()


QUOTA = """
import json, resource, sys, threading
from pathlib import Path
from companion_core.errors import CompanionError
from companion_core.models.store import ModelStore
from companion_core.decisions.manifest import verify_manifest
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document
import io

data = bytes(1500)
class Body(io.BytesIO):
    pass

publisher = FakePublisher()
url = "https://models.example.org/tiny.gguf"
manifest = verify_manifest(
    publisher.envelope(manifest_document(url, data)),
    trusted_keys=[publisher.public_key], now=TEST_NOW, last_seen=None,
)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
folder = Path(sys.argv[1])
try:
    ModelStore(folder).stage(
        manifest.models[0], allowed_sources=manifest.allowed_sources,
        download=lambda request: Body(data),
    )
except CompanionError as error:
    print(json.dumps([error.reason, [path.name for path in folder.iterdir()]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_quota_of_1024_bytes_never_yields_a_model_of_1500(tmp_path: Path) -> None:
    """covers: download_stage/short-write"""
    result = subprocess.run(
        [sys.executable, "-c", QUOTA, str(tmp_path / "models")],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(result.stdout) == ["disk_unavailable", []]
