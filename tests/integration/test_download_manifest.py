"""The manifest over real TLS: its host, its limits, its deadlines."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.decisions.manifest import Manifest
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.integration

PATH = "/companion/manifest.json"
PUBLISHER = FakePublisher()


@pytest.fixture
def host(authority: CertificateAuthority) -> Iterator[ModelHost]:
    content = {PATH: manifest()}
    with ModelHost(authority.server_context(), content, name="localhost") as host:
        yield host


def manifest(url: str = "https://127.0.0.1:8443/companion/tiny.gguf", **changes: Any) -> bytes:
    return PUBLISHER.envelope(manifest_document(url, b"model", **changes))


def fetch(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, path: str = PATH, **patience: float
) -> Manifest:
    return fetch_manifest(
        host.url(path),
        egress=LiveEgress(),
        context=context,
        trusted_keys=[PUBLISHER.public_key],
        memory=ManifestMemory(tmp_path / "state" / "memory.json"),
        wall_now=TEST_NOW,
        **patience,
    )


def refusal(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, path: str = PATH, **patience: float
) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        fetch(host, context, tmp_path, path, **patience)
    memory = ManifestMemory(tmp_path / "state" / "memory.json")
    assert memory.last_seen([PUBLISHER.public_key]) is None
    assert memory.stored(host.url(path)) is None
    return caught.value


def test_a_manifest_comes_from_another_host_with_a_plain_get(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path
) -> None:
    assert fetch(host, context, tmp_path).models[0].id == "tiny"
    [(_, headers)] = host.requests
    assert {"authorization", "cookie"}.isdisjoint(headers)


@pytest.mark.parametrize("port", [":8443", ""])
def test_the_models_own_host_vouches_for_nothing(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, port: str
) -> None:
    host.content = {PATH: manifest(f"https://LocalHost{port}/companion/tiny.gguf")}
    error = refusal(host, context, tmp_path)
    assert (error.reason, error.exit_code) == (Reason.MANIFEST_UNTRUSTED, 3)


@pytest.mark.parametrize(
    "knobs",
    [
        Misbehaviour(status=500),
        Misbehaviour(status=204),
        Misbehaviour(status=206),
        Misbehaviour(status=302, location="/elsewhere"),
        Misbehaviour(content_encoding="gzip"),
        Misbehaviour(close_after=10),
        Misbehaviour(close_after=0, chunked=True),
    ],
)
def test_an_answer_that_is_no_whole_manifest_is_unavailable(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, knobs: Misbehaviour
) -> None:
    host.misbehave = knobs
    error = refusal(host, context, tmp_path)
    assert (error.reason, error.exit_code) == (Reason.MANIFEST_UNAVAILABLE, 4)
    assert len(host.requests) == 1


def test_a_missing_path_is_unavailable(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path
) -> None:
    error = refusal(host, context, tmp_path, "/elsewhere")
    assert error.reason is Reason.MANIFEST_UNAVAILABLE


@pytest.mark.parametrize("knobs", [Misbehaviour(endless=True, unannounced=True)])
def test_no_more_is_read_than_a_manifest_may_be(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, knobs: Misbehaviour
) -> None:
    host.misbehave = knobs
    assert refusal(host, context, tmp_path).reason is Reason.MANIFEST_MALFORMED


@pytest.mark.parametrize(
    "knobs", [Misbehaviour(stall_after=10), Misbehaviour(drip_seconds=0.05)], ids=["stall", "drip"]
)
def test_a_host_that_stalls_or_drips_is_given_up(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, knobs: Misbehaviour
) -> None:
    host.misbehave = knobs
    error = refusal(host, context, tmp_path, idle_seconds=0.3, body_seconds=0.5)
    assert error.reason is Reason.MANIFEST_UNAVAILABLE


def test_a_host_that_does_not_listen_is_unavailable(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path
) -> None:
    host.stop()
    assert refusal(host, context, tmp_path).reason is Reason.MANIFEST_UNAVAILABLE


def test_an_unknown_authority_gets_no_request(host: ModelHost, tmp_path: Path) -> None:
    error = refusal(host, build_tls_context(), tmp_path)
    assert error.reason is Reason.MANIFEST_UNAVAILABLE
    assert host.requests == []
