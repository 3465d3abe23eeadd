"""A publisher's list and the person's own, side by side."""

from __future__ import annotations

import hashlib
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.authority.own_model import OwnFile, OwnModel
from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, Reason
from companion_core.serving.model_lists import FoundModel, ModelLists
from companion_core.serving.own_list import open_own_list
from companion_core.testing import FakeKeychain
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"
DATA = b"a small model"


class World:
    """A publisher who offers "tiny", and a person with a keychain."""

    def __init__(
        self, folder: Path, *, publisher: bool = True, key_file: str | None = None
    ) -> None:
        self.paths = InstancePaths(folder / "state")
        self.keychain = FakeKeychain()
        self.manifest = folder / "manifest.json"
        maker = FakePublisher()
        self.manifest.write_bytes(maker.envelope(manifest_document(URL, DATA)))
        document: dict[str, Any] = {}
        if publisher:
            trusted = [maker.public_key]
            document["manifest"] = {"url": self.manifest.as_uri(), "trusted_keys": trusted}
        if key_file is not None:
            document["models"] = {"key_file": key_file}
        self.config = parse_config(document)
        chosen: Any = SimpleNamespace(provider=self.keychain, plugin="fake")
        self.own = open_own_list(self.config, self.paths, chosen, clock=lambda: TEST_NOW)
        self.lists = ModelLists(
            self.config,
            self.paths,
            RefusingEgress(),
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            self.own,
            clock=lambda: TEST_NOW,
        )

    def record(self, name: str) -> None:
        file = OwnFile(name="own.gguf", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
        self.own.add(OwnModel(id=name, format="gguf", files=(file,), origin="own.gguf"))

    def find(self, name: str) -> FoundModel:
        return self.lists.find(name, threading.Event())

    def refusal(self, name: str) -> CompanionError:
        with pytest.raises(CompanionError) as caught:
            self.find(name)
        return caught.value


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_each_list_vouches_for_its_own(world: World) -> None:
    world.record("mine")
    theirs, mine = world.find("tiny"), world.find("mine")
    assert (theirs.vouched_by, theirs.model.id) == (ManifestKind.PUBLISHER, "tiny")
    assert (mine.vouched_by, mine.model.id, mine.publisher) == (ManifestKind.PERSONAL, "mine", None)


def test_a_person_without_models_needs_no_keychain(world: World) -> None:
    world.find("tiny")
    assert world.keychain.calls == 0


def test_an_id_in_both_lists_is_refused_by_name(world: World) -> None:
    world.record("tiny")
    error = world.refusal("tiny")
    assert (error.reason, error.detail) == (Reason.MODEL_ID_TAKEN, "tiny")


def test_an_id_in_neither_list_shows_what_there_is(world: World) -> None:
    world.record("mine")
    error = world.refusal("other")
    assert error.reason is Reason.MODEL_NOT_IN_MANIFEST
    assert error.detail == "the manifest has tiny; your own models are mine"


def test_without_any_model_the_way_on_is_told(tmp_path: Path) -> None:
    error = World(tmp_path, publisher=False).refusal("mine")
    assert error.reason is Reason.MODEL_NOT_IN_MANIFEST
    assert "companion models add" in error.detail


def test_no_publisher_is_needed(tmp_path: Path) -> None:
    world = World(tmp_path, publisher=False)
    world.record("mine")
    assert world.find("mine").vouched_by is ManifestKind.PERSONAL
    assert world.lists.publisher(threading.Event()) is None


def test_a_silent_publisher_keeps_nobody_from_their_own(world: World) -> None:
    world.record("mine")
    world.manifest.unlink()
    assert world.find("mine").vouched_by is ManifestKind.PERSONAL
    assert world.refusal("tiny").reason is Reason.MANIFEST_UNAVAILABLE


def test_a_publisher_that_is_refused_is_refused_for_every_id(world: World) -> None:
    world.record("mine")
    world.manifest.write_bytes(b"{}")
    assert world.refusal("mine").reason is Reason.MANIFEST_MALFORMED


def test_a_lost_key_is_told(world: World) -> None:
    world.record("mine")
    world.keychain.items.clear()
    assert world.refusal("mine").reason is Reason.PERSONAL_KEY_MISSING


def test_the_key_may_lie_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "own.pem"
    world = World(tmp_path, key_file=str(path))
    world.record("mine")
    assert path.exists()
    assert world.keychain.calls == 0
    assert world.find("mine").vouched_by is ManifestKind.PERSONAL


def test_a_passphrase_encrypts_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_KEY_PASSPHRASE", "correct horse")
    path = tmp_path / "keys" / "own.pem"
    World(tmp_path, key_file=str(path)).record("mine")
    assert b"ENCRYPTED" in path.read_bytes()
    monkeypatch.delenv("COMPANION_KEY_PASSPHRASE")
    assert World(tmp_path, key_file=str(path)).refusal("mine").reason is Reason.USAGE


def test_a_keychain_that_forgets_keeps_no_key(tmp_path: Path) -> None:
    world = World(tmp_path)
    chosen: Any = SimpleNamespace(provider=world.keychain, plugin="memory")
    own = open_own_list(world.config, world.paths, chosen, clock=lambda: TEST_NOW)
    file = OwnFile(name="own.gguf", size=1, sha256="0" * 64)
    with pytest.raises(CompanionError) as caught:
        own.add(OwnModel(id="mine", format="gguf", files=(file,), origin=""))
    assert caught.value.reason is Reason.KEYCHAIN_ABSENT
    assert "models.key_file" in caught.value.detail


def test_an_own_list_that_cannot_be_read_keeps_nobody_from_a_publishers_model(
    world: World,
) -> None:
    world.record("mine")
    world.keychain.items.clear()
    assert world.find("tiny").vouched_by is ManifestKind.PUBLISHER
    assert world.refusal("mine").reason is Reason.PERSONAL_KEY_MISSING
    assert world.refusal("neither").reason is Reason.PERSONAL_KEY_MISSING
    world.paths.own_manifest.write_bytes(b"{}")
    assert world.find("tiny").vouched_by is ManifestKind.PUBLISHER


def test_an_id_that_an_unreadable_list_claims_is_not_the_publishers(world: World) -> None:
    world.record("tiny")
    world.keychain.items.clear()
    assert world.refusal("tiny").reason is Reason.PERSONAL_KEY_MISSING
