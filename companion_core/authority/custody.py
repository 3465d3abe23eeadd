"""Custody of the sign-in session; the rules: decisions/custody.py.

`sign_in/session.py` has one behind each use of a token. A session loads whole or not at all;
everything is checked before anything is written; clearing tries every account, whatever fails.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Final

from companion_core.authority.keychain import (
    GuardedKeychain,
    load_stored,
    load_token,
    require_secret,
    require_token,
)
from companion_core.decisions.custody import (
    CLEARING_ORDER,
    Account,
    SessionMeta,
    decide_session,
    parse_stored_meta,
)
from companion_core.decisions.oauth.token import RefreshDecision
from companion_core.errors import CompanionError
from companion_core.system.secret import Secret

__all__ = [
    "KEEP",
    "Session",
    "SessionCustody",
]

KEEP: Final = object()
"""For `store_session`: the stored refresh token stays."""


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
        access = require_token(access_token)
        keep = refresh_token is KEEP
        refresh = None if keep or refresh_token is None else require_token(refresh_token)
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
        return parse_stored_meta(load_stored(self._keychain, Account.SESSION_META))

    def _load_token(self, account: Account) -> Secret | None:
        return load_token(self._keychain, account)
