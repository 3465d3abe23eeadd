"""Rules for this file: what a sign-in stores, under which four names, and when that counts.

Sizes are bounded; metadata holds no secret and no field but its own; torn or corrupt metadata is
no session (I-13). Imports no keychain; never raises on bad input.

A start stores the loopback token by these rules, and `companion login` the session.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, TypeGuard

from companion_core.decisions.guard import MINIMUM_TOKEN_LENGTH
from companion_core.decisions.numbers import is_finite
from companion_core.decisions.oauth.token import (
    REFRESH_SKEW_MS,
    RefreshDecision,
    decide_token_refresh,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.providers import MAX_SECRET_BYTES

__all__ = [
    "CLEARING_ORDER",
    "Account",
    "SessionMeta",
    "build_session_meta",
    "decide_session",
    "is_loopback_token",
    "is_storable",
    "is_token",
    "parse_session_meta",
    "parse_stored_meta",
]

_MILLISECONDS: Final = 1000
_BEARER: Final = "Bearer"
_MALFORMED = refuse(Reason.MALFORMED_INPUT)


class Account(enum.StrEnum):
    """The accounts of a companion; there is no other."""

    ACCESS_TOKEN = "access_token"  # noqa: S105 - an account, not a secret
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - an account, not a secret
    SESSION_META = "session_meta"
    LOOPBACK_TOKEN = "loopback_token"  # noqa: S105 - an account, not a secret
    PERSONAL_KEY = "personal_key"  # signs the manifest of the person's own models


# The accounts that end with the session, the longest-lived first; the loopback token stays.
CLEARING_ORDER: Final = (Account.REFRESH_TOKEN, Account.ACCESS_TOKEN, Account.SESSION_META)


# --- secrets ------------------------------------------------------------------------------


def is_storable(value: object) -> TypeGuard[str]:
    """Tell whether `value` is a plain `str` of 1 to `MAX_SECRET_BYTES` bytes of UTF-8."""
    if type(value) is not str or not 0 < len(value) <= MAX_SECRET_BYTES:
        return False
    try:
        return len(value.encode()) <= MAX_SECRET_BYTES
    except UnicodeEncodeError:  # a lone surrogate; the exception itself holds the value
        return False


def is_token(value: object) -> TypeGuard[str]:
    """Tell whether `value` is visible ASCII: it goes into a header (RFC 6750 section 2.1)."""
    return is_storable(value) and all("!" <= character <= "~" for character in value)


def is_loopback_token(value: object) -> TypeGuard[str]:
    """Tell whether `value` is a token that is long enough for the guard."""
    return is_token(value) and len(value) >= MINIMUM_TOKEN_LENGTH


# --- the session's metadata ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMeta:
    """What is stored beside the tokens: no secret, and no field but these.

    Times are milliseconds since the epoch.
    """

    expires_at: float
    refresh_expires_at: float | None = None
    scope: str | None = None
    token_type: str = _BEARER
    issuer: str | None = None
    stored_at: float | None = None

    def to_json(self) -> str:
        """Return the form that is stored; `parse_stored_meta` is the inverse."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)


def parse_session_meta(value: object) -> SessionMeta | Verdict:
    """Return the known fields of `value`; an optional field of another type counts as absent.

    Without a finite `expires_at` it is `malformed_input`.
    """
    if not isinstance(value, Mapping):
        return _MALFORMED
    expires_at = _finite(value.get("expires_at"))
    if expires_at is None:
        return _MALFORMED
    return SessionMeta(
        expires_at=expires_at,
        refresh_expires_at=_finite(value.get("refresh_expires_at")),
        scope=_text(value.get("scope")),
        token_type=_text(value.get("token_type")) or _BEARER,
        issuer=_text(value.get("issuer")),
        stored_at=_finite(value.get("stored_at")),
    )


def parse_stored_meta(stored: object) -> SessionMeta | None:
    """Return the metadata in a stored text; None when it is torn or corrupt."""
    if not is_storable(stored):
        return None
    try:
        meta = parse_session_meta(json.loads(stored))
    except (ValueError, RecursionError):
        return None
    return None if isinstance(meta, Verdict) else meta


def build_session_meta(
    token_response: object,
    *,
    now: object,
    refresh_ttl_ms: object = None,
    issuer: object = None,
) -> SessionMeta | Verdict:
    """Return the metadata of a token response (RFC 6749 section 5.1), or `malformed_input`.

    Args:
        token_response: with `expires_in` in whole seconds.
        now: milliseconds since the epoch.
        refresh_ttl_ms: how long a refresh token lives; no ceiling unless positive.
        issuer: who issued the tokens.
    """
    if not isinstance(token_response, Mapping):
        return _MALFORMED
    start = _finite(now)
    lifetime = _finite(token_response.get("expires_in"))
    if start is None or lifetime is None or lifetime <= 0 or lifetime != int(lifetime):
        return _MALFORMED
    ttl = _finite(refresh_ttl_ms)
    refreshable = ttl is not None and ttl > 0 and bool(_text(token_response.get("refresh_token")))
    return parse_session_meta(
        {
            **token_response,
            "expires_at": start + lifetime * _MILLISECONDS,
            "refresh_expires_at": start + ttl if ttl is not None and refreshable else None,
            "issuer": issuer,
            "stored_at": start,
        }
    )


def decide_session(meta: object, *, has_refresh_token: object, now: object) -> RefreshDecision:
    """Return what to do with a session at `now`, in milliseconds since the epoch.

    A clock that shows a time before the session was stored says nothing about a token's age:
    the access token is then refreshed before it is used.
    """
    if not isinstance(meta, SessionMeta) or not is_finite(now):
        return RefreshDecision.REAUTH
    stored_at = meta.stored_at
    clock_went_back = stored_at is not None and not (
        is_finite(stored_at) and stored_at <= now + REFRESH_SKEW_MS
    )
    return decide_token_refresh(
        expires_at=now if clock_went_back else meta.expires_at,
        now=now,
        refresh_expires_at=meta.refresh_expires_at,
        has_refresh_token=has_refresh_token,
    )


def _finite(value: object) -> float | None:
    return value if is_finite(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
