"""Rules for this file: sign-in on another device (RFC 8628).

The person types a code at an address of the issuer, which is shown as text and never opened. The
token endpoint is asked no more often than it says, and no longer than the code lives.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.oauth.authorization import server_error
from companion_core.decisions.oauth.endpoint import admit_endpoint
from companion_core.decisions.oauth.grammar import (
    is_printable,
    is_printable_secret,
    is_scope_list,
)
from companion_core.decisions.oauth.token import (
    TokenRequest,
    TokenResponse,
    validate_token_response,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = [
    "DeviceCode",
    "Pending",
    "build_device_poll",
    "build_device_request",
    "parse_device_code",
    "read_device_answer",
]

_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_USER_CODE: Final = re.compile(r"[A-Za-z0-9]+(?:[ -]?[A-Za-z0-9]+){0,15}")
_MAX_USER_CODE: Final = 32
_DEFAULT_INTERVAL: Final = 5  # RFC 8628 section 3.2
_MAX_INTERVAL: Final = 60
_MAX_LIFETIME: Final = 1800


class Pending(enum.Enum):
    """The person has not decided yet (RFC 8628 section 3.5)."""

    WAIT = "authorization_pending"
    SLOW_DOWN = "slow_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCode:
    """What the server gave for this attempt.

    Attributes:
        device_code: proves to the server that this program asked.
        user_code: what the person types.
        verification_uri: where the person types it; of the issuer's own origin.
        expires_in: seconds that both codes live.
        interval: seconds between two questions.
    """

    device_code: Secret
    user_code: str
    verification_uri: str
    expires_in: int
    interval: int


def build_device_request(
    *, endpoint: object, client_id: object, scopes: object
) -> TokenRequest | Verdict:
    """Return the request for a code (RFC 8628 3.1), or `malformed_input`."""
    address = admit_endpoint(endpoint)
    if isinstance(address, Verdict):
        return address
    if not is_printable(client_id) or not is_scope_list(scopes):
        return refuse(Reason.MALFORMED_INPUT)
    params: dict[str, str | Secret] = {"client_id": client_id, "scope": " ".join(scopes)}
    return TokenRequest(url=address.url, params=MappingProxyType(params))


def parse_device_code(document: object, issuer: object) -> DeviceCode | Verdict:
    """Return the codes of an answer.

    Returns:
        The codes; else `issuer_mismatch` when the person would be sent elsewhere than to the
        issuer, `invalid_token_response`, or a `ServerError`.
    """
    home = admit_endpoint(issuer)
    if not isinstance(document, Mapping) or isinstance(home, Verdict):
        return refuse(Reason.INVALID_TOKEN_RESPONSE)
    if document.get("error") is not None:
        return server_error(Reason.AUTHORIZATION_SERVER_ERROR, document["error"])
    device_code, user_code = document.get("device_code"), document.get("user_code")
    lifetime = document.get("expires_in")
    interval = document.get("interval", _DEFAULT_INTERVAL)
    if (
        not is_printable(device_code)
        or not isinstance(user_code, str)
        or len(user_code) > _MAX_USER_CODE
        or _USER_CODE.fullmatch(user_code) is None
        or not is_finite(lifetime)
        or not is_finite(interval)
        or lifetime < 1
        or interval < 0
    ):
        return refuse(Reason.INVALID_TOKEN_RESPONSE)
    place = admit_endpoint(document.get("verification_uri"))
    if isinstance(place, Verdict) or place.origin != home.origin:
        return refuse(Reason.ISSUER_MISMATCH)
    return DeviceCode(
        device_code=Secret(device_code),
        user_code=user_code,
        verification_uri=place.url,
        expires_in=int(min(lifetime, _MAX_LIFETIME)),
        interval=int(min(max(interval, 1), _MAX_INTERVAL)),
    )


def build_device_poll(
    *, token_endpoint: object, client_id: object, device_code: object
) -> TokenRequest | Verdict:
    """Return one question whether the person has decided (RFC 8628 3.4), or `malformed_input`."""
    address = admit_endpoint(token_endpoint)
    if isinstance(address, Verdict):
        return address
    if not is_printable(client_id) or not is_printable_secret(device_code):
        return refuse(Reason.MALFORMED_INPUT)
    params: dict[str, str | Secret] = {
        "grant_type": _GRANT,
        "device_code": device_code,
        "client_id": client_id,
    }
    return TokenRequest(url=address.url, params=MappingProxyType(params))


def read_device_answer(document: object) -> TokenResponse | Pending | Verdict:
    """Return the tokens, that the person has not decided yet, or why there will be none.

    An expired code is `sign_in_timeout`; a refusal of the person or of the server is
    `authorization_server_error`.
    """
    error = document.get("error") if isinstance(document, Mapping) else None
    if error is None:
        return validate_token_response(document)
    for pending in Pending:
        if error == pending.value:
            return pending
    if error == "expired_token":
        return refuse(Reason.SIGN_IN_TIMEOUT)
    return server_error(Reason.AUTHORIZATION_SERVER_ERROR, error)
