"""Custody of the sign-in session and of the loopback token.

Rules: a session loads whole or not at all; everything is checked before anything is
written; clearing tries every account whatever fails. The loopback token has nothing to do
with the session: it is new at each start and gone at shutdown.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeGuard

from companion_core.authority.keychain import (
    Account,
    GuardedKeychain,
    is_storable,
    require_secret,
)
from companion_core.decisions.numbers import is_finite
from companion_core.decisions.oauth.token import (
    REFRESH_SKEW_MS,
    RefreshDecision,
    decide_token_refresh,
)
from companion_core.errors import CompanionError, PluginFault, Reason, Refused, error_for

__all__ = [
    "KEEP",
    "LoopbackToken",
    "Session",
    "SessionCustody",
    "SessionMeta",
    "build_session_meta",
    "generate_loopback_token",
    "parse_session_meta",
]

MIN_LOOPBACK_CHARACTERS: Final = 32
LOOPBACK_BYTES: Final = 32  # 256 bits, 43 characters of base64url
_MILLISECONDS: Final = 1000

KEEP: Final = object()
"""For `store_session`: the refresh token stays as it is."""


# --- the session's metadata ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMeta:
    """What is kept beside the tokens; no secret, and no field but these.

    Times are milliseconds since the epoch.
    """

    expires_at: float
    refresh_expires_at: float | None = None
    scope: str | None = None
    token_type: str = "Bearer"  # noqa: S105 - RFC 6750's name, not a secret
    issuer: str | None = None
    stored_at: float | None = None

    def to_json(self) -> str:
        """Return the form that is stored; `parse_session_meta` of its JSON is the inverse."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)


def parse_session_meta(value: object) -> SessionMeta:
    """Return the known fields of `value`; an optional field of another type counts as absent.

    Raises:
        Refused: `malformed_input` without a finite `expires_at`.
    """
    if not isinstance(value, Mapping):
        raise Refused(Reason.MALFORMED_INPUT)
    expires_at = _finite(value.get("expires_at"))
    if expires_at is None:
        raise Refused(Reason.MALFORMED_INPUT)
    return SessionMeta(
        expires_at=expires_at,
        refresh_expires_at=_finite(value.get("refresh_expires_at")),
        scope=_text(value.get("scope")),
        token_type=_text(value.get("token_type"), "Bearer"),
        issuer=_text(value.get("issuer")),
        stored_at=_finite(value.get("stored_at")),
    )


def build_session_meta(
    token_response: object,
    *,
    now: object,
    refresh_ttl_ms: object = None,
    issuer: object = None,
) -> SessionMeta:
    """Return the metadata of a token response (RFC 6749 section 5.1).

    Args:
        token_response: with `expires_in` in whole seconds.
        now: milliseconds since the epoch.
        refresh_ttl_ms: how long a refresh token lives; no ceiling unless positive.
        issuer: who issued the tokens.

    Raises:
        Refused: `malformed_input` when `now` or `expires_in` is no usable number.
    """
    if not isinstance(token_response, Mapping):
        raise Refused(Reason.MALFORMED_INPUT)
    start = _finite(now)
    lifetime = _finite(token_response.get("expires_in"))
    if start is None or lifetime is None or lifetime <= 0 or lifetime != int(lifetime):
        raise Refused(Reason.MALFORMED_INPUT)
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


def _finite(value: object) -> float | None:
    return value if is_finite(value) else None


def _text(value: object, default: Any = None) -> Any:
    return value if isinstance(value, str) else default


# --- the session --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A whole session; the tokens stay out of its `repr`."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float
    refresh_expires_at: float | None
    scope: str | None
    token_type: str
    issuer: str | None
    stored_at: float | None


class SessionCustody:
    """Keeps one session in the keychain.

    The metadata is the seal: it goes first and comes back last, so that a write which was
    cut off anywhere loads as no session.

    Raises:
        CompanionError: from the methods, what `GuardedKeychain` raises; `secret_invalid` for
            a token and `malformed_input` for metadata, before anything was changed.
    """

    def __init__(self, keychain: GuardedKeychain) -> None:
        self._keychain = keychain
        self._lock = threading.RLock()

    def store_session(
        self, *, access_token: object, meta: SessionMeta, refresh_token: object = None
    ) -> None:
        """Replace the session.

        Args:
            access_token: visible ASCII.
            meta: of both tokens.
            refresh_token: None removes the old one, `KEEP` leaves it (RFC 6749 section 6: a
                refresh need not bring a new one).
        """
        access = _require_token(access_token)
        keep = refresh_token is KEEP
        refresh = None if keep or refresh_token is None else _require_token(refresh_token)
        sealed = require_secret(meta.to_json())
        with self._lock:
            self._keychain.delete(Account.SESSION_META)
            try:
                if refresh is not None:
                    self._keychain.set(Account.REFRESH_TOKEN, refresh)
                elif not keep:
                    self._keychain.delete(Account.REFRESH_TOKEN)
                self._keychain.set(Account.ACCESS_TOKEN, access)
                self._keychain.set(Account.SESSION_META, sealed)
            except CompanionError:
                with contextlib.suppress(CompanionError):
                    self.clear_session()  # half a session is of no use to anyone
                raise

    def load_session(self) -> Session | None:
        """Return the session, or None when a part is missing or corrupt."""
        with self._lock:
            meta = self._load_meta()
            access_token = self._load_token(Account.ACCESS_TOKEN)
            if meta is None or access_token is None:
                return None
            return Session(
                access_token=access_token,
                refresh_token=self._load_token(Account.REFRESH_TOKEN),
                expires_at=meta.expires_at,
                refresh_expires_at=meta.refresh_expires_at,
                scope=meta.scope,
                token_type=meta.token_type,
                issuer=meta.issuer,
                stored_at=meta.stored_at,
            )

    def decide(self, now: float) -> RefreshDecision:
        """Return what to do with the session at `now`, in milliseconds since the epoch.

        A clock that stands before the time of storing says nothing about a token's age: the
        access token is then not used as it is.
        """
        session = self.load_session()
        if session is None:
            return RefreshDecision.REAUTH
        stored_at = session.stored_at
        clock_went_back = stored_at is not None and now + REFRESH_SKEW_MS < stored_at
        return decide_token_refresh(
            expires_at=now if clock_went_back else session.expires_at,
            now=now,
            refresh_expires_at=session.refresh_expires_at,
            has_refresh_token=session.refresh_token is not None,
        )

    def clear_session(self) -> None:
        """Remove the session; every account is tried, then the first failure is raised."""
        failures: list[CompanionError] = []
        with self._lock:
            for account in (Account.REFRESH_TOKEN, Account.ACCESS_TOKEN, Account.SESSION_META):
                try:
                    self._keychain.delete(account)
                except CompanionError as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _load_meta(self) -> SessionMeta | None:
        stored = _load(self._keychain, Account.SESSION_META)
        if stored is None:
            return None
        try:
            return parse_session_meta(json.loads(stored))
        except (ValueError, RecursionError, Refused):
            return None

    def _load_token(self, account: Account) -> str | None:
        stored = _load(self._keychain, account)
        return stored if _is_token(stored) else None


def _load(keychain: GuardedKeychain, account: Account) -> str | None:
    """Return what is stored; something that could never have been stored counts as nothing."""
    try:
        return keychain.get(account)
    except PluginFault as fault:
        if fault.reason is Reason.PLUGIN_RESULT_INVALID:
            return None
        raise


def _is_token(value: object) -> TypeGuard[str]:
    """Tell whether `value` is visible ASCII: it goes into a header (RFC 6750 section 2.1)."""
    return is_storable(value) and all("!" <= character <= "~" for character in value)


def _require_token(value: object) -> str:
    if not _is_token(value):
        raise error_for(Reason.SECRET_INVALID)
    return value


# --- the loopback token -------------------------------------------------------------------


def generate_loopback_token() -> str:
    """Return a new token: 256 bits of the system's randomness in base64url."""
    return secrets.token_urlsafe(LOOPBACK_BYTES)


class LoopbackToken:
    """Keeps the token that local programs show to the gateway.

    A start stores a new one, shutdown clears it; sign-in and logout do not touch it.
    """

    def __init__(self, keychain: GuardedKeychain) -> None:
        self._keychain = keychain

    def store(self, token: object) -> None:
        """Put `token` in the place of the last one.

        Raises:
            UsageError: `secret_invalid` when it is short, no visible ASCII, or the token that
                is stored already: a rotation to the same value would be none.
        """
        new = _require_token(token)
        if len(new) < MIN_LOOPBACK_CHARACTERS:
            raise error_for(Reason.SECRET_INVALID)
        if self.load() == new:
            raise error_for(Reason.SECRET_INVALID)
        self._keychain.set(Account.LOOPBACK_TOKEN, new)

    def load(self) -> str | None:
        """Return the stored token, or None when there is none or it is corrupt."""
        stored = _load(self._keychain, Account.LOOPBACK_TOKEN)
        return stored if _is_token(stored) else None

    def clear(self) -> None:
        """Remove the token."""
        self._keychain.delete(Account.LOOPBACK_TOKEN)
