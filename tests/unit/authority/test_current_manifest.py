"""Silence leads to the stored manifest; an answer that is refused does not."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.current_manifest import CurrentManifest, current_manifest
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"
PUBLISHER, STRANGER = FakePublisher(), FakePublisher(b"\7" * 32)
DAY = 86_400


class Person:
    """Reads a manifest in a file, which may be gone."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "manifest.json"
        self.memory = ManifestMemory(folder / "manifests" / "memory.json")

    def publish(self, publisher: FakePublisher = PUBLISHER, **changes: Any) -> None:
        self.file.write_bytes(publisher.envelope(manifest_document(URL, b"model", **changes)))

    def read(
        self, now: float = TEST_NOW, keys: tuple[str, ...] = (PUBLISHER.public_key,)
    ) -> CurrentManifest:
        return current_manifest(
            self.file.as_uri(),
            egress=RefusingEgress(),
            context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trusted_keys=keys,
            memory=self.memory,
            wall_now=now,
            cancelled=threading.Event(),
        )

    def refusal(self, **options: Any) -> CompanionError:
        with pytest.raises(CompanionError) as caught:
            self.read(**options)
        return caught.value


@pytest.fixture
def person(tmp_path: Path) -> Person:
    person = Person(tmp_path)
    person.publish(version=3)
    return person


def test_what_is_there_is_used(person: Person) -> None:
    current = person.read()
    assert (current.manifest.version, current.is_stored) == (3, False)
    assert current.fetched_at == TEST_NOW


def test_what_was_accepted_is_used_while_nothing_is_there(person: Person) -> None:
    person.read()
    person.file.unlink()
    current = person.read(now=TEST_NOW + DAY)
    assert (current.manifest.version, current.is_stored) == (3, True)
    assert current.fetched_at == TEST_NOW
    assert str(person.file) in current.unreachable
    assert person.read(now=TEST_NOW + 2 * DAY).fetched_at == TEST_NOW


def test_without_a_stored_one_the_missing_file_is_named(person: Person) -> None:
    person.file.unlink()
    error = person.refusal()
    assert error.reason is Reason.MANIFEST_UNAVAILABLE
    assert str(person.file) in error.detail


def test_a_refused_answer_is_refused(person: Person) -> None:
    person.read()
    person.publish(version=2)
    assert person.refusal().reason is Reason.MANIFEST_ROLLED_BACK
    person.publish(STRANGER, version=4)
    assert person.refusal().reason is Reason.MANIFEST_SIGNATURE_INVALID
    person.publish(version=4, expires="2026-01-10T00:00:00Z")
    assert person.refusal().reason is Reason.MANIFEST_EXPIRED
    person.file.write_bytes(b"<html>sign in to this network</html>")
    assert person.refusal().reason is Reason.MANIFEST_MALFORMED


def test_the_stored_one_expires_and_stays_expired(person: Person) -> None:
    person.read()
    person.file.unlink()
    error = person.refusal(now=TEST_NOW + 30 * DAY)
    assert error.reason is Reason.MANIFEST_EXPIRED
    assert "the stored one is refused" in error.detail
    assert person.refusal().reason is Reason.MANIFEST_EXPIRED


def test_the_stored_one_is_verified_with_the_keys_of_now(person: Person) -> None:
    person.read()
    person.file.unlink()
    assert person.refusal(keys=(STRANGER.public_key,)).reason is Reason.MANIFEST_UNAVAILABLE
    assert person.read(keys=(STRANGER.public_key, PUBLISHER.public_key)).is_stored


def test_a_stored_one_that_was_tampered_with_is_none(person: Person) -> None:
    person.read()
    person.file.unlink()
    [stored] = [p for p in person.memory._path.parent.iterdir() if p.name != "memory.json"]
    whole = stored.read_bytes()
    for content in (b"", b"{}", whole[:-40] + b'"}', whole.replace(b"A", b"B")):
        stored.write_bytes(content)
        assert person.refusal().reason is Reason.MANIFEST_UNAVAILABLE
    stored.write_bytes(whole)
    assert person.read().is_stored
    stored.chmod(0o666)
    assert person.refusal().reason is Reason.MANIFEST_UNAVAILABLE


def test_a_stored_one_that_is_older_than_what_was_seen_is_refused(person: Person) -> None:
    """Another instance has accepted a newer one of the same key, from another address."""
    person.read()
    person.file.unlink()
    newer = PUBLISHER.envelope(manifest_document(URL, b"model", version=4))
    person.memory.judge(
        "https://other.example.org/m.json",
        newer,
        trusted_keys=[PUBLISHER.public_key],
        wall_now=TEST_NOW,
    )
    assert person.refusal().reason is Reason.MANIFEST_ROLLED_BACK
