from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.integrity import parse_model_spec
from companion_core.decisions.manifest import (
    LastSeen,
    Manifest,
    ManifestFile,
    ManifestModel,
    check_manifest_origin,
    check_payload,
    check_trust_anchor,
    verify_manifest,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"
DATA = b"a small model"
PUBLISHER = FakePublisher()
STRANGER = FakePublisher(b"\7" * 32)


def document(**changes: Any) -> dict[str, Any]:
    return manifest_document(URL, DATA, **changes)


def verify(
    raw: Any,
    *,
    keys: Any = (PUBLISHER.public_key,),
    now: float = TEST_NOW,
    last_seen: LastSeen | None = None,
) -> Manifest | Verdict:
    return verify_manifest(raw, trusted_keys=keys, now=now, last_seen=last_seen)


def reason(raw: Any, **arguments: Any) -> Reason:
    answer = verify(raw, **arguments)
    return Reason.OK if isinstance(answer, Manifest) else answer.reason


def accepted(**changes: Any) -> Manifest:
    manifest = verify(PUBLISHER.envelope(document(**changes)))
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_signed_current_manifest_is_accepted() -> None:
    manifest = accepted(version=7)
    assert (manifest.version, manifest.issued, manifest.expires) == (7, 1767225600, 1769817600)
    assert manifest.allowed_sources == ("https://models.example.org/companion/",)
    [model] = manifest.models
    assert (model.id, model.format, model.licence, model.chat_template) == (
        "tiny",
        "gguf",
        "Apache-2.0",
        None,
    )
    [file] = model.files
    assert (file.name, file.size) == ("tiny.gguf", len(DATA))
    assert [url.text for url in file.urls] == [URL]


# --- the signature --------------------------------------------------------------------------


def test_a_strangers_signature() -> None:
    raw = STRANGER.envelope(document())
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID
    assert reason(raw, keys=[PUBLISHER.public_key, STRANGER.public_key]) is Reason.OK


def test_one_trusted_signature_among_others_is_enough() -> None:
    payload = json.dumps(document()).encode()
    entries = [STRANGER.signature(payload), PUBLISHER.signature(payload)]
    assert reason(PUBLISHER.envelope(payload, signatures=entries)) is Reason.OK


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"key_id": "0" * 64, "signature": ""}],
        [{"key_id": None, "signature": None}],
    ],
)
def test_no_signature(entries: Any) -> None:
    raw = PUBLISHER.envelope(document(), signatures=entries)
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID


def test_a_strangers_signature_under_a_trusted_name() -> None:
    payload = json.dumps(document()).encode()
    entry = {**STRANGER.signature(payload), "key_id": PUBLISHER.signature(payload)["key_id"]}
    raw = PUBLISHER.envelope(payload, signatures=[entry])
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID


def test_a_signature_for_another_type_of_document() -> None:
    payload = json.dumps(document()).encode()
    raw = PUBLISHER.envelope(payload, signatures=[PUBLISHER.signature(payload, "text/plain")])
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID
    raw = PUBLISHER.envelope(payload, payload_type="text/plain")
    assert reason(raw) is Reason.MANIFEST_MALFORMED


@given(st.integers(min_value=0))
def test_every_flipped_bit_of_the_payload_breaks_the_signature(bit: int) -> None:
    payload = bytearray(json.dumps(document()).encode())
    entry = PUBLISHER.signature(bytes(payload))
    bit %= len(payload) * 8
    payload[bit // 8] ^= 1 << (bit % 8)
    raw = PUBLISHER.envelope(bytes(payload), signatures=[entry])
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID


@pytest.mark.parametrize("keys", [[], ["ed25519:AA=="], [PUBLISHER.public_key, "nonsense"], [None]])
def test_no_key_and_a_damaged_key_trust_nothing(keys: Any) -> None:
    assert reason(PUBLISHER.envelope(document()), keys=keys) is Reason.MANIFEST_SIGNATURE_INVALID


def test_nothing_is_read_before_the_signature_is_right() -> None:
    raw = STRANGER.envelope(b'{"version":')
    assert reason(raw) is Reason.MANIFEST_SIGNATURE_INVALID


# --- time and version -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (1767225600 - 300.5, Reason.MANIFEST_NOT_YET_VALID),
        (1767225600 - 300, Reason.OK),
        (1769817600 - 0.5, Reason.OK),
        (1769817600, Reason.MANIFEST_EXPIRED),
        (float("nan"), Reason.MANIFEST_NOT_YET_VALID),
        (float("inf"), Reason.MANIFEST_NOT_YET_VALID),
    ],
)
def test_validity(now: float, expected: Reason) -> None:
    assert reason(PUBLISHER.envelope(document()), now=now) is expected


def test_never_older() -> None:
    seen = accepted(version=5)
    last_seen = LastSeen(5, seen.payload_sha256)
    same = PUBLISHER.envelope(document(version=5))
    older = PUBLISHER.envelope(document(version=4))
    other = PUBLISHER.envelope(document(version=5, expires="2026-01-30T00:00:00Z"))
    newer = PUBLISHER.envelope(document(version=6))
    assert reason(same, last_seen=last_seen) is Reason.OK
    assert reason(older, last_seen=last_seen) is Reason.MANIFEST_ROLLED_BACK
    assert reason(other, last_seen=last_seen) is Reason.MANIFEST_ROLLED_BACK
    assert reason(newer, last_seen=last_seen) is Reason.OK


# --- form -----------------------------------------------------------------------------------


def with_model(**changes: Any) -> dict[str, Any]:
    value = document()
    value["models"][0].update(changes)
    return value


def with_file(**changes: Any) -> dict[str, Any]:
    value = document()
    value["models"][0]["files"][0].update(changes)
    return value


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in document().items() if name != key}


def many_files(count: int) -> dict[str, Any]:
    file = document()["models"][0]["files"][0]
    return with_model(files=[{**file, "name": f"f{index}"} for index in range(count)])


MALFORMED = [
    *(without(key) for key in document()),
    document(schema=2),
    document(schema=True),
    document(version=0),
    document(version=True),
    document(version="1"),
    document(version=2**53),
    document(issued="2026-01-01"),
    document(issued="2026-01-01T00:00:00+00:00"),
    document(issued="2026-13-01T00:00:00Z"),
    document(issued="0000-01-01T00:00:00Z"),
    document(issued=1767225600),
    document(expires="2026-01-01T00:00:00Z"),
    document(allowed_sources=[]),
    document(allowed_sources="https://models.example.org/"),
    document(models=[]),
    document(models={}),
    document(models=document()["models"] * 2),
    document(note="unknown fields are refused"),
    with_model(note=1),
    with_file(note=1),
    with_model(id=""),
    with_model(id="../x"),
    with_model(id="a/../b"),
    with_model(id="a\nb"),
    with_model(id="x" * 129),
    with_model(format="GGUF"),
    with_model(format="../gguf"),
    with_model(licence=1),
    with_model(licence="x" * 129),
    with_model(licence="a\nb"),
    with_model(chat_template=1),
    with_model(chat_template="x" * 65_537),
    with_model(files=[]),
    with_model(files=document()["models"][0]["files"] * 2),
    with_file(name=""),
    with_file(name="."),
    with_file(name=".."),
    with_file(name=".hidden"),
    with_file(name="a/b"),
    with_file(name="a\\b"),
    with_file(name="a:b"),
    with_file(name="é"),
    with_file(name="a."),
    with_file(name="a\0"),
    with_file(name="x" * 129),
    with_file(urls=[]),
    with_file(urls=[URL] * 11),
    many_files(1001),
]


@pytest.mark.parametrize("value", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(value: dict[str, Any]) -> None:
    assert reason(PUBLISHER.envelope(value)) is Reason.MANIFEST_MALFORMED


def test_files_are_counted_over_all_models() -> None:
    assert reason(PUBLISHER.envelope(many_files(200))) is Reason.OK
    model = many_files(501)["models"][0]
    file = {"name": "f", "size": 1, "sha256": "0" * 64, "urls": ["https://m.example/f"]}
    models = [
        {**model, "id": name, "files": [{**file, "name": f"f{index}"} for index in range(501)]}
        for name in ("a", "b")
    ]
    raw = PUBLISHER.envelope(document(allowed_sources=["https://m.example/"], models=models))
    assert len(raw) < 256 * 1024
    assert reason(raw) is Reason.MANIFEST_MALFORMED


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (with_file(urls=["http://models.example.org/companion/m"]), Reason.SCHEME_NOT_ALLOWED),
        (with_file(urls=["https://evil.example/m"]), Reason.SOURCE_NOT_ALLOWED),
        (with_file(urls=[URL, "https://evil.example/m"]), Reason.SOURCE_NOT_ALLOWED),
        (with_file(urls=[5]), Reason.MALFORMED_SPEC),
        (with_file(sha256="0" * 63), Reason.MALFORMED_SPEC),
        (with_file(sha256="A" * 64), Reason.MALFORMED_SPEC),
        (with_file(size=0), Reason.MALFORMED_SPEC),
        (with_file(size="5"), Reason.MALFORMED_SPEC),
        (document(allowed_sources=["http://models.example.org/"]), Reason.SCHEME_NOT_ALLOWED),
        (document(allowed_sources=["https://models.example.org/?x"]), Reason.SOURCE_NOT_ALLOWED),
        (document(allowed_sources=["/"]), Reason.MALFORMED_SPEC),
    ],
)
def test_a_wrong_source_or_specification_says_so(value: dict[str, Any], expected: Reason) -> None:
    assert reason(PUBLISHER.envelope(value)) is expected


def test_unknown_fields_only_under_x() -> None:
    value = document()
    value["x-note"] = {"anything": [1, None]}
    value["models"][0]["x-note"] = 1
    value["models"][0]["files"][0]["x-note"] = 1
    assert reason(PUBLISHER.envelope(value)) is Reason.OK


def test_licence_and_template_may_be_left_out() -> None:
    value = document()
    del value["models"][0]["licence"], value["models"][0]["chat_template"]
    assert reason(PUBLISHER.envelope(value)) is Reason.OK


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        json.dumps(document()).encode().replace(b'"version": 1', b'"version": 1, "version": 2'),
        json.dumps(document()).encode().replace(b'"version": 1', b'"version": 1.0'),
        json.dumps(document()).encode().replace(b'"version": 1', b'"version": NaN'),
        json.dumps(document()).encode("utf-16"),
    ],
)
def test_signed_but_no_plain_document(payload: bytes) -> None:
    assert reason(PUBLISHER.envelope(payload)) is Reason.MANIFEST_MALFORMED
    assert check_payload(payload).reason is Reason.MANIFEST_MALFORMED


def test_too_long() -> None:
    raw = PUBLISHER.envelope(document())
    padded = raw + b" " * (256 * 1024 - len(raw))
    assert reason(padded) is Reason.OK
    assert reason(padded + b" ") is Reason.MANIFEST_MALFORMED


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": "not base64"},
        {"payload": None},
        {"payload": base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode()},
        {"signatures": None},
        {"signatures": [5]},
        {"signatures": [{"key_id": "a"}]},
        {"signatures": [{"key_id": "a", "signature": "AA==", "more": 1}]},
        {"signatures": [{"key_id": "a", "signature": ""}] * 17},
        {"more": 1},
    ],
)
def test_malformed_envelopes(changes: dict[str, Any]) -> None:
    assert reason(PUBLISHER.envelope(document(), **changes)) is Reason.MANIFEST_MALFORMED


# Values that resemble a manifest, signed: the parser behind the signature is total.
_words = st.sampled_from([*document(), *document()["models"][0], "name", "size", "x-y", "urls"])
_leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(URL)
_nested = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=6),
    max_leaves=12,
)


@given(st.dictionaries(_words, _nested, max_size=7))
def test_the_payload_parser_is_total(value: dict[str, Any]) -> None:
    answer = verify(PUBLISHER.envelope({**document(), **value}))
    assert isinstance(answer, Manifest | Verdict)


@given(st.binary() | st.text() | st.none() | _nested.map(lambda value: json.dumps(value).encode()))
def test_the_envelope_parser_is_total(raw: object) -> None:
    answer = verify(raw)
    assert isinstance(answer, Verdict)
    assert not answer.ok


# --- where it came from ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        ("https://manifests.example.org/m.json", True),
        ("file:///etc/companion/manifest.json", True),
        ("https://models.example.org/m.json", False),
        ("https://MODELS.example.org:8443/m.json", False),
        ("https://models.example.org./m.json", False),
        ("http://manifests.example.org/m.json", False),
        ("file://manifests.example.org/m.json", False),
        ("", False),
        (None, False),
    ],
)
def test_the_manifest_comes_from_another_host(origin: object, ok: bool) -> None:
    verdict = check_manifest_origin(origin, [URL])
    assert verdict.reason is (Reason.OK if ok else Reason.MANIFEST_UNTRUSTED)


def test_every_address_of_the_model_counts() -> None:
    origin = "https://manifests.example.org/m.json"
    assert not check_manifest_origin(origin, [URL, "https://manifests.example.org/x"]).ok
    assert not check_manifest_origin(origin, []).ok
    assert not check_manifest_origin(origin, None).ok


@given(_nested, _nested)
def test_the_origin_rule_is_total(origin: object, urls: object) -> None:
    check_manifest_origin(origin, urls)


def test_only_a_proved_manifest_anchors_trust() -> None:
    spec = {
        "manifest_url": "https://manifests.example.org/m.json",
        "model_url": URL,
        "sha256": "0" * 64,
        "size": 1,
        "allowed": [URL],
    }
    assert check_trust_anchor(accepted(), **spec).ok
    for impostor in (None, True, {}, verify(b"")):
        assert check_trust_anchor(impostor, **spec).reason is Reason.MANIFEST_UNTRUSTED


def test_only_the_rule_makes_the_proof() -> None:
    with pytest.raises(TypeError):
        Manifest(1, 0.0, 1.0, (), (), "")
    with pytest.raises(TypeError):
        ManifestModel("tiny", "gguf", None, None, ())
    with pytest.raises(TypeError):
        ManifestFile("tiny", parse_model_spec("0" * 64, 1), ())
