"""Rules for this file: the token endpoint's requests and answers, and when to refresh.

A request is a description that the authority side sends over verified TLS, without redirects
and never with a client secret. An answer is taken only whole, typed, bounded and unambiguous.
"""

from __future__ import annotations

import base64
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.oauth.authorization import server_error
from companion_core.decisions.oauth.endpoint import admit_endpoint
from companion_core.decisions.oauth.grammar import (
    constant_time_equal,
    is_bearer_token,
    is_printable,
    is_printable_secret,
    is_scope_list,
    is_scope_text,
)
from companion_core.decisions.oauth.pkce import is_code_verifier
from companion_core.decisions.oauth.redirect import admit_redirect_uri
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = [
    "REFRESH_SKEW_MS",
    "RefreshDecision",
    "TokenRequest",
    "TokenResponse",
    "build_refresh_request",
    "build_revocation_request",
    "build_token_request",
    "check_granted_scope",
    "check_id_token_nonce",
    "decide_token_refresh",
    "validate_token_response",
]

REFRESH_SKEW_MS: Final = 30_000

# A longer life would never be refreshed, so a revoked session would never be noticed.
_MAX_EXPIRES_IN_SECONDS: Final = 366 * 24 * 3600

_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
)
_ID_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.(?P<claims>[A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_MAX_ID_TOKEN_CHARACTERS: Final = 32_768


class RefreshDecision(enum.StrEnum):
    """What to do before the access token is used."""

    VALID = "valid"
    REFRESH = "refresh"
    REAUTH = "reauth"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A form to POST to the token endpoint.

    Attributes:
        params: the fields; each credential among them is a `Secret`.
    """

    url: str
    params: Mapping[str, str | Secret]
    headers: Mapping[str, str] = field(default_factory=lambda: _HEADERS)
    method: str = "POST"

    @property
    def body(self) -> bytes:
        """The encoded form, with the credentials in it (RFC 6749 appendix B)."""
        sent = {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in self.params.items()
        }
        return urlencode(sent).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResponse:
    """A successful answer (RFC 6749 5.1); `expires_in` in seconds.

    Attributes:
        scope: as granted; None if it is the one that was asked for.
        id_token: `check_id_token` has to check it before anything in it is believed.
    """

    access_token: Secret
    refresh_token: Secret | None
    expires_in: int
    scope: str | None
    id_token: Secret | None = None


def build_token_request(
    *,
    token_endpoint: object,
    client_id: object,
    code: object,
    code_verifier: object,
    redirect_uri: object,
    allowed_redirect_hosts: object = None,
) -> TokenRequest | Verdict:
    """Return the exchange of the code (RFC 6749 4.1.3, RFC 7636 4.5), or why not.

    Args:
        token_endpoint: of the server that issued the code.
        client_id: of this public client.
        code: the `Secret` of the answer (`AuthorizationCode`).
        code_verifier: the `Secret` of this attempt (`verifier_from`).
        redirect_uri: as it was sent with the authorization request.
        allowed_redirect_hosts: as in `admit_redirect_uri`.
    """
    endpoint = admit_endpoint(token_endpoint)
    if isinstance(endpoint, Verdict):
        return endpoint
    redirect = admit_redirect_uri(redirect_uri, allowed_redirect_hosts)
    if isinstance(redirect, Verdict):
        return redirect
    if not (
        is_printable(client_id) and is_printable_secret(code) and is_code_verifier(code_verifier)
    ):
        return refuse(Reason.MALFORMED_INPUT)
    params: dict[str, str | Secret] = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": code_verifier,
        "redirect_uri": redirect.text,
        "client_id": client_id,
    }
    return TokenRequest(url=endpoint.url, params=MappingProxyType(params))


def build_refresh_request(
    *,
    token_endpoint: object,
    client_id: object,
    refresh_token: object,
    scopes: object = None,
    original_scopes: object = None,
) -> TokenRequest | Verdict:
    """Return the refresh (RFC 6749 6), or why not.

    Args:
        token_endpoint: of the server that issued the refresh token.
        client_id: of this public client.
        refresh_token: the stored `Secret`.
        scopes: a narrower scope to ask for; None keeps the granted one.
        original_scopes: the granted scope, if known; asking for more is `scope_exceeded`.
    """
    endpoint = admit_endpoint(token_endpoint)
    if isinstance(endpoint, Verdict):
        return endpoint
    if not is_printable(client_id) or not is_printable_secret(refresh_token):
        return refuse(Reason.MALFORMED_INPUT)
    params: dict[str, str | Secret] = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": client_id,
    }
    if scopes is not None:
        if not is_scope_list(scopes):
            return refuse(Reason.MALFORMED_INPUT)
        scope = params["scope"] = " ".join(scopes)
        if original_scopes is not None:
            within = check_granted_scope(scope, original_scopes)
            if not within.ok:
                return within
    return TokenRequest(url=endpoint.url, params=MappingProxyType(params))


def build_revocation_request(
    *, endpoint: object, client_id: object, token: object
) -> TokenRequest | Verdict:
    """Return the request that ends a token (RFC 7009 2.1), or `malformed_input`."""
    address = admit_endpoint(endpoint)
    if isinstance(address, Verdict):
        return address
    if not is_printable(client_id) or not is_printable_secret(token):
        return refuse(Reason.MALFORMED_INPUT)
    params: dict[str, str | Secret] = {"token": token, "client_id": client_id}
    return TokenRequest(url=address.url, params=MappingProxyType(params))


def validate_token_response(response: object) -> TokenResponse | Verdict:
    """Return the tokens of a decoded JSON answer, or `invalid_token_response` (RFC 6749 5.1).

    An `error` member refuses, whatever else the answer holds, with its code if that is a known
    one (`ServerError`). Tokens have at most 8192 characters; they live 1 second to 366 days.
    """
    if not isinstance(response, Mapping):
        return refuse(Reason.INVALID_TOKEN_RESPONSE)
    if response.get("error") is not None:
        return server_error(Reason.INVALID_TOKEN_RESPONSE, response["error"])
    token_type = response.get("token_type")
    access_token = response.get("access_token")
    expires_in = response.get("expires_in")
    refresh_token = response.get("refresh_token")
    scope = response.get("scope")
    id_token = response.get("id_token")
    if (
        not isinstance(token_type, str)
        or token_type.lower() != "bearer"
        or not is_bearer_token(access_token)
        or not is_finite(expires_in)
        or not 0 < expires_in <= _MAX_EXPIRES_IN_SECONDS
        or expires_in != int(expires_in)
        or ("refresh_token" in response and not is_printable(refresh_token))
        or ("scope" in response and not is_scope_text(scope))
        or not (id_token is None or isinstance(id_token, str))
    ):
        return refuse(Reason.INVALID_TOKEN_RESPONSE)
    return TokenResponse(
        access_token=Secret(access_token),
        refresh_token=None if refresh_token is None else Secret(refresh_token),
        expires_in=int(expires_in),
        scope=scope,
        id_token=None if id_token is None else Secret(id_token),
    )


def check_granted_scope(granted: object, asked: object) -> Verdict:
    """Return whether the `granted` text stays within the `asked` list (RFC 6749 3.3).

    None means that the scope was granted as asked (RFC 6749 5.1). Nothing is within a malformed
    list.
    """
    if not is_scope_list(asked):
        return refuse(Reason.SCOPE_EXCEEDED)
    if granted is None:
        return OK
    if is_scope_text(granted) and set(granted.split()) <= set(asked):
        return OK
    return refuse(Reason.SCOPE_EXCEEDED)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def check_id_token_nonce(id_token: object, expected_nonce: object) -> Verdict:
    """Return whether the ID token answers this attempt (OpenID Connect Core 3.1.3.7, item 11).

    It is read for its nonce alone; `check_id_token` asks for the rest.
    """
    mismatch = refuse(Reason.NONCE_MISMATCH)
    text = id_token.reveal() if isinstance(id_token, Secret) else ""
    match = _ID_TOKEN.fullmatch(text) if len(text) <= _MAX_ID_TOKEN_CHARACTERS else None
    if match is None:
        return mismatch
    try:
        raw = base64.urlsafe_b64decode(match["claims"] + "==")  # more padding than due is ignored
        claims = json.loads(raw, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError):
        return mismatch
    if isinstance(claims, dict) and constant_time_equal(claims.get("nonce"), expected_nonce):
        return OK
    return mismatch


def decide_token_refresh(
    *,
    expires_at: object,
    now: object,
    skew_ms: object = REFRESH_SKEW_MS,
    refresh_expires_at: object = None,
    has_refresh_token: object = True,
) -> RefreshDecision:
    """Return whether the access token is used, refreshed, or the person signs in again.

    Args:
        expires_at: the end of the access token, in milliseconds since the epoch, as all times
            here.
        now: the present.
        skew_ms: how long before its end a token is no longer used; a malformed or negative value
            counts as the default of 30 seconds.
        refresh_expires_at: the end of the refresh token; None if unknown. A malformed value
            counts as past.
        has_refresh_token: only `True` counts; without one a refresh cannot succeed.
    """
    if not is_finite(expires_at) or not is_finite(now):
        return RefreshDecision.REAUTH
    skew = skew_ms if is_finite(skew_ms) and skew_ms >= 0 else REFRESH_SKEW_MS
    if now + skew < expires_at:
        return RefreshDecision.VALID
    if has_refresh_token is not True:
        return RefreshDecision.REAUTH
    if refresh_expires_at is None or (is_finite(refresh_expires_at) and now < refresh_expires_at):
        return RefreshDecision.REFRESH
    return RefreshDecision.REAUTH
