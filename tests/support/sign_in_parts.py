"""A sign-in service on real TLS with a switch for each way to misbehave, and a person."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from companion_core.authority.sign_in import (
    AccountSession,
    AccountSettings,
    Exchange,
    account_scope,
)
from companion_core.egress.live import LiveEgress
from companion_core.testing import FakeKeychain
from companion_core.testing.tls_host import HostRequest, TlsHost

CLIENT = "companion"
SCOPES = ("openid", "offline_access")
METADATA_PATH = "/.well-known/openid-configuration"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class IdTokens:
    """Makes identity tokens, and the keys that verify them."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        self.keys = {
            "keys": [
                {
                    "kty": "EC",
                    "crv": "P-256",
                    "kid": "one",
                    "x": encoded(numbers.x.to_bytes(32)),
                    "y": encoded(numbers.y.to_bytes(32)),
                }
            ]
        }

    def make(self, claims: Mapping[str, Any], **header: Any) -> str:
        head = {"alg": "ES256", "kid": "one", **header}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (head, dict(claims)))
        r, s = utils.decode_dss_signature(
            self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        )
        return f"{signed}.{encoded(r.to_bytes(32) + s.to_bytes(32))}"


class Service(TlsHost):
    """Grants tokens to whoever comes back with the right verifier.

    Attributes:
        metadata: members that differ from the right ones; None leaves one out.
        answer_form_with: status, media type and body of every form's answer, in place of the
            right one.
        token: members of a token answer that differ; None leaves one out.
        claims: members of the identity token that differ.
        expires_in: seconds that an access token lives.
        forms: path and fields of each form so far.
        revoked: the refresh tokens that are no longer accepted.
        pending: how often a device's question is answered with `authorization_pending`.
        stalled: nothing is answered until the host stops.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context, {})
        self.tokens = IdTokens()
        self.metadata: dict[str, Any] = {}
        self.answer_form_with: Callable[[str], tuple[int, str, bytes] | None] = lambda _path: None
        self.token: dict[str, Any] = {}
        self.claims: dict[str, Any] = {}
        self.expires_in = 3600
        self.forms: list[tuple[str, dict[str, str]]] = []
        self.revoked: set[str] = set()
        self.pending: list[str] = []
        self.stalled: str | None = None
        self.nonce: str | None = None
        self.challenge = ""
        self._turn = threading.Lock()
        self._made = 0

    @property
    def issuer(self) -> str:
        return self.url("").removesuffix("/")

    def document(self) -> dict[str, Any]:
        right = {
            "issuer": self.issuer,
            "authorization_endpoint": self.url("/authorize"),
            "token_endpoint": self.url("/token"),
            "device_authorization_endpoint": self.url("/device"),
            "revocation_endpoint": self.url("/revoke"),
            "jwks_uri": self.url("/keys"),
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "token_endpoint_auth_methods_supported": ["none"],
        }
        return {name: value for name, value in {**right, **self.metadata}.items() if value}

    def answer(self, request: HostRequest) -> None:
        if request.path == self.stalled:
            self.stopping.wait()
            return
        known = {METADATA_PATH: self.document(), "/keys": self.tokens.keys}
        document = known.get(request.path)
        status = HTTPStatus.NOT_FOUND if document is None else HTTPStatus.OK
        reply(request, status, "application/json", json.dumps(document).encode())

    def answer_form(self, request: HostRequest) -> None:
        length = int(request.headers["Content-Length"])
        fields = dict(parse_qsl(request.rfile.read(length).decode()))
        self.forms.append((request.path, fields))
        if request.path == self.stalled:
            self.stopping.wait()
            return
        planted = self.answer_form_with(request.path)
        if planted is not None:
            reply(request, *planted)
            return
        with self._turn:
            status, document = self._granted(request.path, fields)
        reply(request, status, "application/json", json.dumps(document).encode())

    def _granted(self, path: str, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match path, fields.get("grant_type"):
            case "/revoke", _:
                self.revoked.add(fields["token"])
                return 200, {}
            case "/device", _:
                code = {"device_code": "d" * 43, "user_code": "WDJB-MJHT", "expires_in": 600}
                return 200, {**code, "verification_uri": self.url("/enter"), "interval": 1}
            case "/token", "authorization_code":
                digest = hashlib.sha256(fields["code_verifier"].encode()).digest()
                if encoded(digest) != self.challenge:
                    return 400, {"error": "invalid_grant"}
                self.challenge = ""  # a code is of one use
                return 200, self._tokens()
            case "/token", "refresh_token":
                if fields["refresh_token"] in self.revoked:
                    return 400, {"error": "invalid_grant"}
                self.revoked.add(fields["refresh_token"])
                return 200, self._tokens(id_token=False)
            case "/token", _:
                if self.pending:
                    return 400, {"error": self.pending.pop(0)}
                self.nonce = None
                return 200, self._tokens()
        return 400, {"error": "invalid_request"}

    def _tokens(self, *, id_token: bool = True) -> dict[str, Any]:
        self._made += 1
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "alice", "iat": now, "exp": now + 600}
        claims |= {"nonce": self.nonce, **self.claims}
        answer = {
            "access_token": f"access-token-number-{self._made}",
            "refresh_token": f"refresh-token-number-{self._made}",
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "scope": " ".join(SCOPES),
            "id_token": self.tokens.make(claims) if id_token else None,
            **self.token,
        }
        return {name: value for name, value in answer.items() if value is not None}


def reply(request: HostRequest, status: int, kind: str, body: bytes) -> None:
    with contextlib.suppress(OSError):  # a client may hang up once it has seen enough
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        if 300 <= status < 400:
            request.send_header("Location", "https://127.0.0.1:1/elsewhere")
        request.end_headers()
        request.wfile.write(body)


def asked(port: int, target: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """One request to the redirect listener; headers by name, `_` for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, target, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Person(LiveEgress):
    """The doorway of a person whose browser does what a test says.

    Args:
        service: that the browser is sent to; it gets the challenge and the nonce.
        browse: what the browser does with the port and the right answer's fields, in a thread.
        opens: whether a browser can be started.

    Attributes:
        opened: the addresses so far.
        replies: what the browser got from the listener.
    """

    def __init__(
        self,
        service: Service | None = None,
        browse: Callable[[int, dict[str, str]], Any] | None = None,
        *,
        opens: bool = True,
    ) -> None:
        self.service = service
        self.browse = browse or answers_rightly
        self.opens = opens
        self.opened: list[str] = []
        self.replies: list[Any] = []
        self.threads: list[threading.Thread] = []

    def open_browser(self, url: str) -> bool:
        self.opened.append(url)
        if not self.opens:
            return False
        sent = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        if self.service is not None:
            self.service.nonce = sent["nonce"]
            self.service.challenge = sent["code_challenge"]
        port = urlsplit(sent["redirect_uri"]).port
        issuer = "" if self.service is None else self.service.issuer
        right = {"code": "the-code", "state": sent["state"], "iss": issuer}
        thread = threading.Thread(target=self._browse, args=(port, right), daemon=True)
        self.threads.append(thread)
        thread.start()
        return True

    def _browse(self, port: int, right: dict[str, str]) -> None:
        self.replies.append(self.browse(port, right))

    def finish(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


def callback(port: int, **params: str) -> tuple[int, str]:
    return asked(port, f"/callback?{urlencode(params)}")


def answers_rightly(port: int, right: dict[str, str]) -> tuple[int, str]:
    return callback(port, **right)


def nothing_listens(port: int) -> bool:
    try:
        asked(port, "/callback")
    except ConnectionRefusedError:
        return True
    return False


def settings_of(issuer: str) -> AccountSettings:
    return AccountSettings(issuer=issuer, client_id=CLIENT, scopes=SCOPES)


def session_of(
    issuer: str,
    context: ssl.SSLContext,
    folder: Path,
    keychain: FakeKeychain,
    **options: Any,
) -> AccountSession:
    """A session as a process opens it; several may share the keychain and the folder."""
    settings = settings_of(issuer)
    return AccountSession(
        settings,
        keychain,
        plugin="fake",
        scope=account_scope(settings, "state"),
        folder=folder / "account",
        exchange=lambda cancelled: Exchange(LiveEgress(), context, cancelled=cancelled),
        **options,
    )
