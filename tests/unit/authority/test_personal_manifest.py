"""The person's own list: what was recorded stays so, and anything else is refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.own_model import OwnFile, OwnModel
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.authority.signing_key import KeyInKeychain
from companion_core.decisions.manifest import ManifestModel
from companion_core.decisions.manifest_kind import ManifestKind, Role
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.testing import FakeKeychain
from companion_core.testing.publisher import FakePublisher

pytestmark = pytest.mark.unit

DAY = 86400.0
URL = "https://models.example.org/own/tiny.gguf"
DATA = b"a small model"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider() -> FakeKeychain:
    return FakeKeychain()


@pytest.fixture
def own(tmp_path: Path, clock: Clock, provider: FakeKeychain) -> PersonalManifest:
    return PersonalManifest(
        tmp_path / "state" / "own.json",
        keys=KeyInKeychain(provider, "fake"),
        memory=ManifestMemory(tmp_path / "memory" / "memory.json"),
        clock=clock,
    )


def model(name: str = "tiny", data: bytes = DATA, **changes: Any) -> OwnModel:
    digest = hashlib.sha256(data)
    file = OwnFile(
        name="tiny.gguf",
        size=len(data),
        sha256=digest.hexdigest(),
        piece_size=2**24,
        pieces=digest.digest(),
    )
    made = OwnModel(id=name, format="gguf", files=(file,), origin="tiny.gguf", licence="MIT")
    return replace(made, **changes)


def recorded(own: PersonalManifest) -> dict[str, ManifestModel]:
    manifest = own.read().manifest
    return {} if manifest is None else {model.id: model for model in manifest.models}


def reason_of(call: Any) -> Reason:
    with pytest.raises(CompanionError) as caught:
        call()
    return caught.value.reason


def test_nothing_is_recorded_at_first(own: PersonalManifest, provider: FakeKeychain) -> None:
    assert own.is_empty
    assert own.read().manifest is None
    assert provider.calls == 0


def test_a_model_is_recorded_and_read_again(own: PersonalManifest) -> None:
    own.add(model())
    assert not own.is_empty
    read = own.read()
    assert read.manifest is not None
    assert read.manifest.kind is ManifestKind.PERSONAL
    assert (read.origins["tiny"], read.added["tiny"][:4]) == ("tiny.gguf", "2027")
    [found] = read.manifest.models
    assert (found.id, found.format, found.licence) == ("tiny", "gguf", "MIT")
    [file] = found.files
    assert (file.name, file.size, file.urls, file.role) == (
        "tiny.gguf",
        len(DATA),
        (),
        Role.MODEL,
    )
    assert file.pieces is not None
    assert file.pieces.is_right(0, hashlib.sha256(DATA).digest())


def test_a_model_with_addresses_allows_their_folders(own: PersonalManifest) -> None:
    file = replace(model().files[0], urls=(URL,), role=Role.MODEL)
    manifest = own.add(model(files=(file,), also_allowed=("https://cdn.example.org/",)))
    assert manifest.allowed_sources == (
        "https://cdn.example.org/",
        "https://models.example.org/own/",
    )
    assert [url.text for url in manifest.models[0].files[0].urls] == [URL]


def test_what_only_a_removed_model_needed_is_allowed_no_longer(own: PersonalManifest) -> None:
    file = replace(model().files[0], urls=(URL,))
    own.add(model(files=(file,), also_allowed=("https://cdn.example.org/a/",)))
    own.add(model("other", also_allowed=("https://cdn.example.org/b/",)))
    own.remove("tiny")
    manifest = own.read().manifest
    assert manifest is not None
    assert manifest.allowed_sources == ("https://cdn.example.org/b/",)
    again = own.add(model("other", also_allowed=("https://cdn.example.org/c/",)))
    assert again.allowed_sources == ("https://cdn.example.org/c/",)
    assert own.renew().allowed_sources == again.allowed_sources


def test_addresses_of_too_many_places_are_told_as_that(own: PersonalManifest) -> None:
    places = [f"https://h{number}.example.org/" for number in range(101)]
    with pytest.raises(UsageError) as caught:
        own.add(model(also_allowed=places))
    assert "of 101 places" in caught.value.detail
    assert own.is_empty


def test_what_was_asked_for_is_recorded_with_the_model(own: PersonalManifest) -> None:
    own.add(model(asked="hf:acme/tiny"))
    own.add(model("other"))
    assert own.read().asked == {"tiny": "hf:acme/tiny", "other": ""}


def test_a_preview_writes_nothing(own: PersonalManifest) -> None:
    manifest = own.preview(model())
    assert [each.id for each in manifest.models] == ["tiny"]
    assert own.is_empty
    own.add(model())
    own.preview(model("other"))
    assert list(recorded(own)) == ["tiny"]


def test_other_bytes_are_never_signed_under_the_same_id(own: PersonalManifest) -> None:
    own.add(model())
    before = recorded(own)["tiny"].files[0].sha256
    others = model(data=b"others")
    assert reason_of(lambda: own.add(others)) is Reason.DIGEST_MISMATCH
    assert reason_of(lambda: own.preview(others)) is Reason.DIGEST_MISMATCH
    assert recorded(own)["tiny"].files[0].sha256 == before
    own.remove("tiny")
    own.add(others)
    assert recorded(own)["tiny"].files[0].sha256 != before


def test_the_same_bytes_may_be_recorded_again(own: PersonalManifest) -> None:
    own.add(model())
    own.add(model(licence="Apache-2.0"))
    assert recorded(own)["tiny"].licence == "Apache-2.0"


def test_models_are_removed_one_by_one(own: PersonalManifest) -> None:
    own.add(model("one"))
    own.add(model("two"))
    own.remove("one")
    assert list(recorded(own)) == ["two"]
    own.remove("two")
    assert own.is_empty
    assert reason_of(lambda: own.remove("two")) is Reason.MODEL_NOT_IN_MANIFEST


def test_the_list_is_signed_under_the_next_version_each_time(own: PersonalManifest) -> None:
    versions = [own.add(model("one")).version, own.add(model("two")).version]
    own.remove("one")
    versions.append(own.renew().version)
    assert versions == [1, 2, 4]


def test_it_holds_for_a_year_and_is_renewed(own: PersonalManifest, clock: Clock) -> None:
    own.add(model())
    clock.now += 364 * DAY
    assert list(recorded(own)) == ["tiny"]
    clock.now += 2 * DAY
    assert reason_of(own.read) is Reason.MANIFEST_EXPIRED
    own.renew()
    assert list(recorded(own)) == ["tiny"]


def test_what_has_expired_can_be_removed(own: PersonalManifest, clock: Clock) -> None:
    own.add(model())
    clock.now += 400 * DAY
    own.remove("tiny")
    assert own.is_empty


def test_what_has_expired_can_be_looked_at_and_the_refusal_leads_on(
    own: PersonalManifest, clock: Clock
) -> None:
    own.add(model())
    clock.now += 366 * DAY
    with pytest.raises(CompanionError) as caught:
        own.read()
    assert caught.value.reason is Reason.MANIFEST_EXPIRED
    assert "companion models verify" in caught.value.detail
    looked_at = own.read(expired=True).manifest
    assert looked_at is not None
    assert [each.id for each in looked_at.models] == ["tiny"]


def test_a_list_is_dropped_without_its_key(own: PersonalManifest, provider: FakeKeychain) -> None:
    own.add(model())
    provider.items.clear()
    with pytest.raises(CompanionError) as caught:
        own.remove("tiny")
    assert caught.value.reason is Reason.PERSONAL_KEY_MISSING
    own.forget()
    assert own.is_empty
    own.forget()


def test_an_older_list_is_refused(own: PersonalManifest, tmp_path: Path) -> None:
    path = tmp_path / "state" / "own.json"
    own.add(model("one"))
    older = path.read_bytes()
    own.add(model("two"))
    path.write_bytes(older)
    assert reason_of(own.read) is Reason.MANIFEST_ROLLED_BACK


def test_a_list_that_somebody_else_signed_is_refused(own: PersonalManifest, tmp_path: Path) -> None:
    path = tmp_path / "state" / "own.json"
    own.add(model())
    mine = path.read_bytes()
    payload = base64.b64decode(json.loads(mine)["payload"])
    forged = FakePublisher().envelope(payload, ManifestKind.PERSONAL)
    path.write_bytes(forged)
    assert reason_of(own.read) is Reason.PERSONAL_KEY_MISSING  # names a key that is not here
    signature = json.loads(forged)["signatures"][0]["signature"]
    claimed = json.loads(mine)
    claimed["signatures"][0]["signature"] = signature
    path.write_text(json.dumps(claimed))
    assert reason_of(own.read) is Reason.MANIFEST_SIGNATURE_INVALID


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"payload": "', b'"payload": "AAAA'),
        lambda raw: raw[:-1],
        lambda raw: b"{}",
        lambda raw: b"",
        lambda raw: raw.replace(b"personal-manifest", b"manifest"),
    ],
)
def test_a_changed_list_is_refused(own: PersonalManifest, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "state" / "own.json"
    own.add(model())
    path.write_bytes(change(path.read_bytes()))
    refused = {
        Reason.MANIFEST_MALFORMED,
        Reason.MANIFEST_SIGNATURE_INVALID,
        Reason.PERSONAL_KEY_MISSING,
    }
    assert reason_of(own.read) in refused
    assert reason_of(lambda: own.add(model("other"))) in refused


def test_without_its_key_the_list_proves_nothing(
    own: PersonalManifest, provider: FakeKeychain
) -> None:
    own.add(model())
    provider.items.clear()
    for attempt in (own.read, own.renew, lambda: own.add(model("two"))):
        assert reason_of(attempt) is Reason.PERSONAL_KEY_MISSING


@pytest.mark.parametrize(
    "changes", [{"id": "no spaces"}, {"id": ""}, {"format": "GGUF"}, {"licence": "\n"}]
)
def test_what_no_manifest_can_hold_is_refused(own: PersonalManifest, changes: Any) -> None:
    assert reason_of(lambda: own.add(model(**changes))) is Reason.USAGE
    assert own.is_empty


def test_two_writers_at_once_lose_nothing(own: PersonalManifest) -> None:
    own.add(model("first"))
    names = [f"model-{number}" for number in range(8)]
    threads = [threading.Thread(target=lambda n=name: own.add(model(n))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(recorded(own)) == {"first", *names}
