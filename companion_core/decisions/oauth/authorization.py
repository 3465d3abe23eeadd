"""Rules for this file: the authorization request and its answer (RFC 6749 4.1, RFC 9207).

The answer is judged by state first, then issuer, then error, then code: one without the right
state is no answer to our request, whatever it says, and does not end the attempt.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, urlencode

from companion_core.decisions.oauth.endpoint import admit_endpoint
from companion_core.decisions.oauth.grammar import (
    constant_time_equal,
    is_printable,
    is_scope_list,
    is_sendable,
)
from companion_core.decisions.oauth.pkce import METHOD, is_code_challenge
from companion_core.decisions.oauth.redirect import admit_redirect_uri
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = [
    "AuthorizationCode",
    "ErrorCode",
    "ServerError",
    "build_authorization_url",
    "server_error",
    "validate_authorization_response",
]


class ErrorCode(enum.StrEnum):
    """The error codes that are passed on (RFC 6749 4.1.2.1 and 5.2), and no others."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED_CLIENT = "unauthorized_client"
    ACCESS_DENIED = "access_denied"
    UNSUPPORTED_RESPONSE_TYPE = "unsupported_response_type"
    INVALID_SCOPE = "invalid_scope"
    SERVER_ERROR = "server_error"
    TEMPORARILY_UNAVAILABLE = "temporarily_unavailable"
    INVALID_GRANT = "invalid_grant"
    INVALID_CLIENT = "invalid_client"
    UNSUPPORTED_GRANT_TYPE = "unsupported_grant_type"


@dataclass(frozen=True, slots=True)
class ServerError(Verdict):
    """A refusal by the server; `error_code` is None when the server gave no known code."""

    error_code: ErrorCode | None = None


@dataclass(frozen=True, slots=True)
class AuthorizationCode:
    """The one-time code of an answer whose state and issuer were right."""

    code: Secret


# Every registered parameter that carries security (IANA OAuth Parameters, OpenID Connect Core
# 3.1.2.1 and 6). Neither the endpoint's own query nor an extra parameter may set one, in upper or
# lower case. A server's own parameters and the harmless prompts remain.
_RESERVED_PARAMETERS: Final = frozenset(
    {
        *("response_type", "response_mode", "client_id", "redirect_uri", "scope", "state"),
        *("code_challenge", "code_challenge_method", "code_verifier", "code", "nonce", "iss"),
        *("client_secret", "client_assertion", "client_assertion_type", "assertion"),
        *("request", "request_uri", "registration", "claims", "authorization_details"),
        *("grant_type", "username", "password", "device_code", "dpop_jkt", "error"),
        *("token", "token_type", "access_token", "refresh_token", "id_token", "id_token_hint"),
    }
)

_ERROR_CODES: Final[Mapping[str, ErrorCode]] = MappingProxyType(
    {code.value: code for code in ErrorCode}
)


def _own_query(query: str) -> frozenset[str] | None:
    """Return the names in an endpoint's query, or None when one of them is reserved."""
    try:
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True, errors="strict")]
    except ValueError:
        return None
    if any(name.lower() in _RESERVED_PARAMETERS for name in names):
        return None
    return frozenset(names)


def build_authorization_url(
    *,
    authorization_endpoint: object,
    client_id: object,
    redirect_uri: object,
    scopes: object,
    state: object,
    code_challenge: object,
    code_challenge_method: object = METHOD,
    nonce: object = None,
    extra_params: object = None,
    allowed_redirect_hosts: object = None,
) -> str | Verdict:
    """Return the address that the person's browser opens (RFC 6749 4.1.1, RFC 7636 4.3).

    The endpoint's own query is kept. `state` and `nonce` are texts: the browser shows them. A
    nonce is sent if there is one; without it, a later ID token is refused. Of `extra_params`,
    only texts are sent that set no reserved parameter.

    Returns:
        The URL; else `invalid_redirect_uri`, or `malformed_input` for anything else.
    """
    endpoint = admit_endpoint(authorization_endpoint)
    if isinstance(endpoint, Verdict):
        return endpoint
    redirect = admit_redirect_uri(redirect_uri, allowed_redirect_hosts)
    if isinstance(redirect, Verdict):
        return redirect
    own = _own_query(endpoint.query)
    if (
        own is None
        or code_challenge_method != METHOD
        or not is_printable(client_id)
        or not is_scope_list(scopes)
        or not is_printable(state)
        or not is_code_challenge(code_challenge)
        or (isinstance(nonce, str) and nonce and not is_printable(nonce))
    ):
        return refuse(Reason.MALFORMED_INPUT)
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect.text,
        "scope": " ".join(scopes),
        "state": state,
        "code_challenge": str(code_challenge),
        "code_challenge_method": METHOD,
    }
    if isinstance(nonce, str) and nonce:
        query["nonce"] = nonce
    if isinstance(extra_params, Mapping):
        query |= {
            name: value
            for name, value in extra_params.items()
            if is_printable(name)
            and name.lower() not in _RESERVED_PARAMETERS
            and name not in own
            and is_sendable(value)
        }
    separator = "&" if endpoint.query else "?"
    return f"{endpoint.url}{separator}{urlencode(query)}"


def server_error(reason: Reason, error: object) -> ServerError:
    """Return the refusal for a server's `error` member, with its code if that is a known one."""
    code = _ERROR_CODES.get(error) if isinstance(error, str) else None
    return ServerError(ok=False, reason=reason, error_code=code)


def validate_authorization_response(
    params: object, *, expected_state: object, expected_issuer: object
) -> AuthorizationCode | Verdict:
    """Return the code, or why the answer is refused (RFC 6749 4.1.2, RFC 9207 2.4).

    Args:
        params: the query of the redirect, as `parse_redirect_query` returns it.
        expected_state: of this attempt; the caller drops it after one use.
        expected_issuer: the server's issuer, which every answer must carry, an error too. There
            is no default: a caller that does not know the issuer has to pass None.
    """
    if not isinstance(params, Mapping):
        return refuse(Reason.MALFORMED_INPUT)
    state = params.get("state")
    if not (
        isinstance(state, str) and state and isinstance(expected_state, str) and expected_state
    ):
        return refuse(Reason.STATE_MISSING)
    if not constant_time_equal(state, expected_state):
        return refuse(Reason.STATE_MISMATCH)
    issuer_known = isinstance(expected_issuer, str) and expected_issuer != ""
    if issuer_known and params.get("iss") != expected_issuer:
        return refuse(Reason.ISSUER_MISMATCH)
    if "error" in params:
        return server_error(Reason.AUTHORIZATION_SERVER_ERROR, params["error"])
    code = params.get("code")
    if not is_printable(code):
        return refuse(Reason.MISSING_CODE)
    return AuthorizationCode(Secret(code))
