"""The person's own manifest beside a publisher's, and what a file of a model is for."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from typing import Any

import pytest

from companion_core.decisions.manifest import Manifest, check_payload, verify_manifest
from companion_core.decisions.manifest_kind import ManifestKind, Role
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"
DATA = b"a small model"
PERSON = FakePublisher()
MEBIBYTE = 2**20
DIGEST = hashlib.sha256(DATA).digest()
PIECES = {"size": MEBIBYTE, "sha256": base64.b64encode(DIGEST).decode()}


def with_file(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(manifest_document(URL, DATA))
    document["models"][0]["files"][0].update(changes)
    return document


def verify(
    document: dict[str, Any], asked: ManifestKind, signed: ManifestKind | None = None
) -> Manifest | Verdict:
    raw = PERSON.envelope(document, signed or asked)
    return verify_manifest(
        raw, trusted_keys=[PERSON.public_key], now=TEST_NOW, last_seen=None, kind=asked
    )


def accepted(document: dict[str, Any], kind: ManifestKind = ManifestKind.PUBLISHER) -> Manifest:
    manifest = verify(document, kind)
    assert isinstance(manifest, Manifest)
    return manifest


@pytest.mark.parametrize("kind", ManifestKind)
def test_each_kind_is_accepted_as_itself_alone(kind: ManifestKind) -> None:
    assert accepted(with_file(), kind).kind is kind
    for other in set(ManifestKind) - {kind}:
        answer = verify(with_file(), asked=kind, signed=other)
        assert isinstance(answer, Verdict)
        assert answer.reason is Reason.MANIFEST_MALFORMED


def test_a_signature_of_one_kind_does_not_count_for_the_other() -> None:
    raw = PERSON.envelope(with_file(), ManifestKind.PUBLISHER)
    renamed = raw.replace(
        ManifestKind.PUBLISHER.payload_type.encode(), ManifestKind.PERSONAL.payload_type.encode()
    )
    assert renamed != raw
    answer = verify_manifest(
        renamed,
        trusted_keys=[PERSON.public_key],
        now=TEST_NOW,
        last_seen=None,
        kind=ManifestKind.PERSONAL,
    )
    assert isinstance(answer, Verdict)
    assert answer.reason is Reason.MANIFEST_SIGNATURE_INVALID


def test_only_a_file_of_the_persons_own_may_have_no_source() -> None:
    document = {**with_file(urls=[]), "allowed_sources": []}
    [model] = accepted(document, ManifestKind.PERSONAL).models
    assert model.files[0].urls == ()
    answer = verify(document, ManifestKind.PUBLISHER)
    assert isinstance(answer, Verdict)
    assert answer.reason is Reason.MANIFEST_MALFORMED


def test_a_source_of_the_persons_own_has_to_be_listed_too() -> None:
    answer = verify({**with_file(), "allowed_sources": []}, ManifestKind.PERSONAL)
    assert isinstance(answer, Verdict)
    assert answer.reason is Reason.SOURCE_NOT_ALLOWED


@pytest.mark.parametrize("role", Role)
def test_a_file_has_the_role_that_was_signed(role: Role) -> None:
    document = with_file()
    other = {**document["models"][0]["files"][0], "name": "other.gguf", "role": role.value}
    document["models"][0]["files"].append(other)
    [model] = accepted(document).models
    assert [file.role for file in model.files] == [Role.MODEL, role]


@pytest.mark.parametrize("role", ["", "Model", "weights", 1, ["model"], {}, True])
def test_an_unknown_role_is_malformed(role: object) -> None:
    assert isinstance(verify(with_file(role=role), ManifestKind.PUBLISHER), Verdict)


def test_a_model_of_projectors_alone_is_malformed() -> None:
    assert isinstance(verify(with_file(role="projector"), ManifestKind.PUBLISHER), Verdict)


def test_a_file_has_the_pieces_that_were_signed() -> None:
    [model] = accepted(with_file(pieces=PIECES)).models
    pieces = model.files[0].pieces
    assert pieces is not None
    assert (len(pieces), pieces.extent(0)) == (1, (0, len(DATA)))
    assert pieces.is_right(0, DIGEST)


@pytest.mark.parametrize(
    "pieces",
    [
        {},
        [],
        1,
        {**PIECES, "size": MEBIBYTE - 1},
        {**PIECES, "size": True},
        {**PIECES, "sha256": ""},
        {**PIECES, "sha256": base64.b64encode(DIGEST * 2).decode()},
        {**PIECES, "sha256": base64.b64encode(DIGEST[:-1]).decode()},
        {**PIECES, "sha256": DIGEST.hex()},
        {**PIECES, "more": 1},
    ],
)
def test_pieces_that_are_not_the_whole_file_are_malformed(pieces: object) -> None:
    assert isinstance(verify(with_file(pieces=pieces), ManifestKind.PUBLISHER), Verdict)


def test_a_draft_is_judged_as_its_kind() -> None:

    payload = json.dumps({**with_file(urls=[]), "allowed_sources": []}).encode()
    assert check_payload(payload, ManifestKind.PERSONAL).ok
    assert not check_payload(payload).ok
