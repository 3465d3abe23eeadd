"""Custody of the loopback token and of the sign-in session; the rules: decisions/custody.py.

The loopback token is new at each start and gone after shutdown; `companion.py` calls for it. It
has nothing to do with the session.

`SessionCustody` will be called by `companion login`, which is not built yet. A session loads
whole or not at all; everything is checked before anything is written; clearing tries every
account, whatever fails.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from dataclasses import dataclass
from typing import Final

from companion_core.authority.keychain import GuardedKeychain, require_secret
from companion_core.decisions.custody import (
    CLEARING_ORDER,
    Account,
    SessionMeta,
    decide_session,
    is_loopback_token,
    is_token,
    parse_stored_meta,
)
from companion_core.decisions.oauth.token import RefreshDecision
from companion_core.errors import CompanionError, PluginFault, Reason, error_for
from companion_core.system.secret import Secret

__all__ = [
    "KEEP",
    "LoopbackToken",
    "Session",
    "SessionCustody",
    "generate_loopback_token",
]

LOOPBACK_BYTES: Final = 32  # 256 bits, 43 characters of base64url

KEEP: Final = object()
"""For `store_session`: the stored refresh token stays."""


# --- the session --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A whole session, as `SessionCustody` loads it."""

    access_token: Secret
    refresh_token: Secret | None
    expires_at: float
    refresh_expires_at: float | None
    scope: str | None
    token_type: str
    issuer: str | None
    stored_at: float | None


class SessionCustody:
    """Keeps one session in the keychain.

    The metadata seals the session: it is removed first and written last, so that a write that
    is cut off anywhere loads as no session.

    Raises:
        CompanionError: from the methods, what `GuardedKeychain` raises; `secret_invalid` for
            a token or metadata that cannot be stored, before anything was changed.
    """

    def __init__(self, keychain: GuardedKeychain) -> None:
        self._keychain = keychain
        self._lock = threading.RLock()

    def store_session(
        self, *, access_token: object, meta: SessionMeta, refresh_token: object = None
    ) -> None:
        """Replace the session.

        Args:
            access_token: a `Secret` of visible ASCII.
            meta: of both tokens.
            refresh_token: a `Secret`; None removes the old one, `KEEP` leaves it (RFC 6749
                section 6: a refresh need not bring a new one).
        """
        access = _require_token(access_token)
        keep = refresh_token is KEEP
        refresh = None if keep or refresh_token is None else _require_token(refresh_token)
        sealed = require_secret(meta.to_json())
        with self._lock:
            self._keychain.delete(Account.SESSION_META)
            try:
                if refresh is not None:
                    self._keychain.set(Account.REFRESH_TOKEN, refresh.reveal())
                elif not keep:
                    self._keychain.delete(Account.REFRESH_TOKEN)
                self._keychain.set(Account.ACCESS_TOKEN, access.reveal())
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
        """Return what to do with the session at `now`, in milliseconds since the epoch."""
        with self._lock:
            meta = self._load_meta()
            has_access_token = self._load_token(Account.ACCESS_TOKEN) is not None
            has_refresh_token = self._load_token(Account.REFRESH_TOKEN) is not None
        return decide_session(
            meta if has_access_token else None, has_refresh_token=has_refresh_token, now=now
        )

    def clear_session(self) -> None:
        """Remove the session; every account is tried, then the first failure is raised."""
        failures: list[CompanionError] = []
        with self._lock:
            for account in CLEARING_ORDER:
                try:
                    self._keychain.delete(account)
                except CompanionError as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _load_meta(self) -> SessionMeta | None:
        return parse_stored_meta(_load(self._keychain, Account.SESSION_META))

    def _load_token(self, account: Account) -> Secret | None:
        return _load_token(self._keychain, account)


def _load(keychain: GuardedKeychain, account: Account) -> str | None:
    """Return what is stored; a value that could never have been stored counts as absent."""
    try:
        return keychain.get(account)
    except PluginFault as fault:
        if fault.reason is Reason.PLUGIN_RESULT_INVALID:
            return None
        raise


def _load_token(keychain: GuardedKeychain, account: Account) -> Secret | None:
    stored = _load(keychain, account)
    return Secret(stored) if is_token(stored) else None


def _require_token(value: object) -> Secret:
    if not (isinstance(value, Secret) and is_token(value.reveal())):
        raise error_for(Reason.SECRET_INVALID)
    return value


# --- the loopback token -------------------------------------------------------------------


def generate_loopback_token() -> Secret:
    """Return a new token: 256 bits of the system's randomness in base64url."""
    return Secret(secrets.token_urlsafe(LOOPBACK_BYTES))


class LoopbackToken:
    """Stores the token that local programs show to the gateway.

    A start stores a new one and shutdown clears it; sign-in and logout do not touch it.
    """

    def __init__(self, keychain: GuardedKeychain) -> None:
        self._keychain = keychain

    def store(self, token: object) -> None:
        """Store `token` instead of the last one.

        Args:
            token: a `Secret`, from `generate_loopback_token`.

        Raises:
            UsageError: `secret_invalid` when it is short, no visible ASCII, or stored already:
                storing the same value again rotates nothing.
        """
        text = _require_token(token).reveal()
        if not is_loopback_token(text) or self.load() == token:
            raise error_for(Reason.SECRET_INVALID)
        self._keychain.set(Account.LOOPBACK_TOKEN, text)

    def load(self) -> Secret | None:
        """Return the stored token; None when no valid one is stored."""
        return _load_token(self._keychain, Account.LOOPBACK_TOKEN)

    def clear(self) -> None:
        """Remove the token."""
        self._keychain.delete(Account.LOOPBACK_TOKEN)
