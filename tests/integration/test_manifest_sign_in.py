"""A publisher's manifest behind a sign-in: who gets the token, and what is lost without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from companion_core.authority.current_manifest import CurrentManifest, current_manifest
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.system.secret import Secret
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document
from companion_core.testing.tls_host import HostRequest, TlsHost

pytestmark = pytest.mark.integration

PUBLISHER = FakePublisher()
ENVELOPE = PUBLISHER.envelope(manifest_document("https://127.0.0.1:1/m/tiny.gguf", b"model"))


class SignedInHost(TlsHost):
    """Gives its manifest to whoever shows a token that it accepts.

    Attributes:
        accepts: the tokens.
        challenge: its WWW-Authenticate header.
        location: redirects there instead, once a token was shown.
        seen: the Authorization header of each request so far.
    """

    def __init__(self, context) -> None:
        super().__init__(context, {}, name="localhost")
        self.accepts = {"good"}
        self.challenge = 'Bearer realm="models"'
        self.location = ""
        self.seen: list[str | None] = []

    def answer(self, request: HostRequest) -> None:
        shown = request.headers.get("Authorization")
        self.seen.append(shown)
        status, body = HTTPStatus.UNAUTHORIZED, b""
        if shown is not None and self.location:
            status = HTTPStatus.FOUND
        elif shown in {f"Bearer {token}" for token in self.accepts}:
            status, body = HTTPStatus.OK, ENVELOPE
        request.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED and self.challenge:
            request.send_header("WWW-Authenticate", self.challenge)
        if status == HTTPStatus.FOUND:
            request.send_header("Location", self.location)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class Tokens:
    """Hands out tokens in turn, and remembers which were rejected."""

    def __init__(self, *tokens: str, reason: Reason = Reason.SIGN_IN_REQUIRED) -> None:
        self.tokens = list(tokens)
        self.rejected: list[str | None] = []
        self.reason = reason

    def token(self, _cancelled: threading.Event, *, rejected: Secret | None = None) -> Secret:
        self.rejected.append(None if rejected is None else rejected.reveal())
        if not self.tokens:
            raise EnvironmentUnavailable(self.reason)
        return Secret(self.tokens.pop(0))


@pytest.fixture
def host(authority) -> Iterator[SignedInHost]:
    with SignedInHost(authority.server_context()) as host:
        yield host


@pytest.fixture
def read(host, context, tmp_path):
    def read(tokens: Tokens | None) -> CurrentManifest:
        return current_manifest(
            host.url("/manifest.json"),
            egress=LiveEgress(),
            context=context,
            trusted_keys=[PUBLISHER.public_key],
            memory=ManifestMemory(tmp_path / "manifests" / "memory.json"),
            wall_now=TEST_NOW,
            cancelled=threading.Event(),
            tokens=tokens,
        )

    return read


def test_a_host_that_asks_gets_the_token_and_no_other_does(host, read) -> None:
    assert not read(Tokens("good")).is_stored
    assert host.seen == [None, "Bearer good"]


def test_a_host_that_does_not_ask_gets_none(host, read, authority, context) -> None:
    host.accepts = set()
    host.challenge = 'Basic realm="models"'
    tokens = Tokens("good")
    with pytest.raises(CompanionError) as caught:
        read(tokens)
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
    assert host.seen == [None]
    assert tokens.rejected == []


@pytest.mark.parametrize("challenge", ["bearer", 'Basic realm="x", Bearer', "BEARER error=x"])
def test_the_scheme_is_found_however_it_is_written(host, read, challenge) -> None:
    host.challenge = challenge
    read(Tokens("good"))
    assert host.seen == [None, "Bearer good"]


def test_a_token_that_is_refused_is_refreshed_once(host, read) -> None:
    tokens = Tokens("old", "good")
    assert not read(tokens).is_stored
    assert host.seen == [None, "Bearer old", "Bearer good"]
    assert tokens.rejected == [None, "old"]


def test_a_host_that_refuses_every_token_is_asked_three_times(host, read) -> None:
    read(Tokens("good"))
    host.seen.clear()
    with pytest.raises(CompanionError) as caught:
        read(Tokens("one", "two", "three"))
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
    assert "401" in caught.value.detail
    assert host.seen == [None, "Bearer one", "Bearer two"]


def test_the_token_does_not_follow_a_redirect(host, read, authority) -> None:
    with SignedInHost(authority.server_context()) as other:
        host.location = other.url("/manifest.json")
        with pytest.raises(CompanionError) as caught:
            read(Tokens("good"))
        assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
        assert other.seen == []


@pytest.mark.parametrize(
    "reason", [Reason.SIGN_IN_REQUIRED, Reason.SIGN_IN_UNAVAILABLE, Reason.KEYCHAIN_LOCKED]
)
def test_without_a_session_the_reason_says_what_to_do(host, read, reason) -> None:
    with pytest.raises(CompanionError) as caught:
        read(Tokens(reason=reason))
    assert caught.value.reason is reason
    assert "asks for a sign-in" in caught.value.detail


def test_a_session_that_ended_leaves_what_was_accepted(host, read) -> None:
    read(Tokens("good"))
    current = read(Tokens())
    assert current.is_stored
    assert "companion login" in current.unreachable


def test_without_an_account_it_is_as_before(host, read) -> None:
    with pytest.raises(CompanionError) as caught:
        read(None)
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
    assert host.seen == [None]
