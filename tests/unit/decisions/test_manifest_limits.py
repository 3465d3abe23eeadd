"""Manifests and their JSON hold at their edges: the last that passes, the first that does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from companion_core.decisions.integrity import parse_model_spec
from companion_core.decisions.manifest import (
    PAYLOAD_TYPE,
    Manifest,
    check_manifest_origin,
    check_payload,
    verify_manifest,
)
from companion_core.decisions.source import SourceUrl
from companion_core.decisions.strict_json import MALFORMED, parse_json
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit


# --- manifest -------------------------------------------------------------------------------

URL = "https://models.example.org/tiny.gguf"
PUBLISHER = FakePublisher()


def manifest(value: dict[str, Any]) -> Manifest | Verdict:
    keys = (PUBLISHER.public_key,)
    return verify_manifest(
        PUBLISHER.envelope(value), trusted_keys=keys, now=TEST_NOW, last_seen=None
    )


def payload(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def document(**changes: Any) -> dict[str, Any]:
    return manifest_document(URL, b"a small model", **changes)


def with_model(**changes: Any) -> dict[str, Any]:
    value = document()
    value["models"][0].update(changes)
    return value


def files(count: int) -> list[dict[str, Any]]:
    file = document()["models"][0]["files"][0]
    return [{**file, "name": f"f{number}"} for number in range(count)]


def models(count: int) -> list[dict[str, Any]]:
    return [{**document()["models"][0], "id": f"m{number}"} for number in range(count)]


def urls(count: int) -> dict[str, Any]:
    value = document()
    value["models"][0]["files"][0]["urls"] = [f"{URL}{number}" for number in range(count)]
    return value


def sources(count: int) -> dict[str, Any]:
    more = [f"https://m{number}.example.org/" for number in range(count - 1)]
    return document(allowed_sources=["https://models.example.org/", *more])


@pytest.mark.parametrize(
    ("last", "first_refused"),
    [
        (document(version=2**53 - 1), document(version=2**53)),
        (document(version=1), document(version=0)),
        (sources(100), sources(101)),
        (document(models=models(100)), document(models=models(101))),
        (with_model(files=files(1000)), with_model(files=files(1001))),
        (urls(10), urls(11)),
        (with_model(chat_template="x" * 65536), with_model(chat_template="x" * 65537)),
        (document(expires="2026-01-01T00:00:01Z"), document(expires="2026-01-01T00:00:00Z")),
    ],
    ids=["version", "version 1", "sources", "models", "files", "urls", "template", "validity"],
)
def test_the_limits_of_a_manifest(last: dict[str, Any], first_refused: dict[str, Any]) -> None:
    assert check_payload(payload(last)) is OK
    assert check_payload(payload(first_refused)).reason is Reason.MANIFEST_MALFORMED


def test_a_manifest_says_what_was_signed() -> None:
    value = with_model(chat_template="{{ x }}", licence="MIT")
    proof = manifest(value)
    assert isinstance(proof, Manifest)
    model = value["models"][0]
    (parsed,) = proof.models
    assert (parsed.id, parsed.format, parsed.licence) == (model["id"], model["format"], "MIT")
    assert parsed.chat_template == "{{ x }}"
    (file,) = model["files"]
    made = parsed.files[0]
    assert (made.name, made.size, made.sha256) == (file["name"], file["size"], file["sha256"])
    assert [url.text for url in made.urls] == file["urls"]
    assert made.spec == parse_model_spec(file["sha256"], file["size"])
    assert {type(url) for url in made.urls} == {SourceUrl}
    assert list(proof.allowed_sources) == value["allowed_sources"]


@pytest.mark.parametrize("urls", [[], None, "https://a.example/", ["no url"]])
def test_an_origin_for_no_model_is_untrusted(urls: object) -> None:
    verdict = check_manifest_origin("https://m.example/", urls)
    assert verdict.reason is Reason.MANIFEST_UNTRUSTED


def test_the_type_of_what_is_signed() -> None:
    assert PAYLOAD_TYPE == "application/vnd.companion.manifest.v1+json"


@pytest.mark.parametrize(
    ("strangers", "answer"), [(15, "ok"), (16, "manifest_malformed")], ids=["16", "17"]
)
def test_the_signatures_of_an_envelope(strangers: int, answer: str) -> None:
    own = PUBLISHER.signature(payload(document()))
    entries = [{**own, "key_id": f"{number:064x}"} for number in range(strangers)]
    raw = PUBLISHER.envelope(document(), signatures=[*entries, own])
    proof = verify_manifest(raw, trusted_keys=(PUBLISHER.public_key,), now=TEST_NOW, last_seen=None)
    assert ("ok" if isinstance(proof, Manifest) else proof.reason) == answer


@pytest.mark.parametrize("suffix", ["?q", "#", "#f", "?q#f"])
def test_a_source_of_a_manifest_is_origin_and_path(suffix: str) -> None:
    value = document()
    value["allowed_sources"].append(f"https://other.example.org/{suffix}")
    assert check_payload(payload(value)).reason is Reason.SOURCE_NOT_ALLOWED


# --- strict JSON ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "ok"),
    [
        (b"[" * 16 + b"]" * 16, True),
        (b"[" * 17 + b"]" * 17, False),
        (b"[" + b"[]," * 20 + b"[" * 16 + b"]" * 17, False),
        (b"[" + b"[]," * 20 + b"[" * 15 + b"]" * 16, True),
        (b'{"a":' * 17 + b"1" + b"}" * 17, False),
        (b'["\\"' + b"[" * 20 + b'"]', True),
        (b'["","' + b"[" * 20 + b'"]', True),
        (b'["\\\n' + b"[" * 20 + b'"]', False),
        (b"9" * 16, True),
        (b"9" * 17, False),
        (b"-" + b"9" * 15, True),
    ],
)
def test_depth_and_digits(raw: bytes, ok: bool) -> None:
    assert (parse_json(raw, limit=1000) is not MALFORMED) is ok


def test_the_limit_of_a_document_is_inclusive() -> None:
    assert parse_json(b"12", limit=2) == 12
    assert parse_json(b"12", limit=1) is MALFORMED
