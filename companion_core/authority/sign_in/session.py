"""The person's session: the one place that hands out an access token.

It is fresh, or refreshed by one program at a time, or there is none. The keychain has the truth:
other programs of the same person share the session, and a lock on a folder keeps two of them from
using one refresh token twice, which a service takes for theft and answers by ending the session.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.authority.custody import KEEP, Session, SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.sign_in.exchange import Exchange
from companion_core.authority.sign_in.service import AccountSettings, Client, GrantRefused
from companion_core.decisions.custody import SessionMeta, build_session_meta, decide_session
from companion_core.decisions.oauth import RefreshDecision, TokenResponse
from companion_core.decisions.oauth.token import REFRESH_SKEW_MS
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.providers import Keychain
from companion_core.system.clock import recency_now, wall_now
from companion_core.system.folder_lock import lock_folder
from companion_core.system.secret import Secret
from companion_core.system.state_files import private_folder
from companion_core.system.tasks import run_in_worker

__all__ = ["AccountSession", "SessionState", "account_scope"]

_MILLISECONDS: Final = 1000
_SKEW_SECONDS: Final = REFRESH_SKEW_MS / _MILLISECONDS
_DIGITS: Final = 16


def account_scope(settings: AccountSettings, state: str) -> str:
    """Return the name of the session's keychain accounts.

    Another issuer or another client is another session: its tokens are never sent to this one.

    Args:
        settings: of the account.
        state: tells state folders apart, each of which has its own session and lock.
    """
    named = f"{settings.issuer}\n{settings.client_id}".encode()
    return f"account/{state}/{hashlib.sha256(named).hexdigest()[:_DIGITS]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What may be told of a session.

    Attributes:
        signed_in: a token is there, or can be had without the person.
        scope: as granted.
        expires_at: of the access token, in seconds since the epoch.
        refreshable: whether it is renewed without the person.
    """

    signed_in: bool
    scope: str | None = None
    expires_at: float | None = None
    refreshable: bool = False


class AccountSession:
    """One session at one service.

    Args:
        settings: of the account.
        provider: the selected keychain.
        plugin: its name.
        scope: from `account_scope`.
        folder: locked while the session is read or changed; made on first use.
        exchange: makes what asks the service; its argument ends a question under way.
        wall: seconds since the epoch, by a clock that may be wrong.
        recency: seconds of a clock that never steps.

    Raises:
        CompanionError: from the methods, a keychain's reason, and `interrupted`.
    """

    def __init__(
        self,
        settings: AccountSettings,
        provider: Keychain,
        *,
        plugin: str,
        scope: str,
        folder: Path,
        exchange: Callable[[threading.Event], Exchange],
        wall: Callable[[], float] = wall_now,
        recency: Callable[[], float] = recency_now,
    ) -> None:
        self.settings = settings
        self._keychain = GuardedKeychain(provider, instance=scope, plugin=plugin)
        self._custody = SessionCustody(self._keychain)
        self._folder = folder
        self._exchange = exchange
        self._wall = wall
        self._recency = recency
        # The token that came to this process, and until when it may be used by a clock that does
        # not step: the wall clock may be set back meanwhile.
        self._fresh: tuple[Secret, float] | None = None

    async def access_token(self, *, rejected: Secret | None = None) -> Secret:
        """Do what `token` does, without blocking the event loop."""
        return await run_in_worker(lambda cancelled: self.token(cancelled, rejected=rejected))

    def token(self, cancelled: threading.Event, *, rejected: Secret | None = None) -> Secret:
        """Return an access token that may be used now. Blocking.

        Args:
            cancelled: ends the wait for another program, and for the service.
            rejected: the token that a host has just refused; it is replaced, whatever the clock
                says, unless another program has replaced it already.

        Raises:
            EnvironmentUnavailable: `sign_in_required`: there is no session, or it has ended;
                `sign_in_unavailable`: it cannot be refreshed now, and stays.
            Refused: the reason of the rule that the service's answer breaks; the session stays.
        """
        with self._locked(cancelled):
            session = self._load()
            if session is None:
                raise EnvironmentUnavailable(Reason.SIGN_IN_REQUIRED)
            decision = self._decide(session)
            if rejected is not None and session.access_token == rejected:
                decision = RefreshDecision.REFRESH
            if decision is RefreshDecision.VALID:
                return session.access_token
            if decision is RefreshDecision.REAUTH or session.refresh_token is None:
                raise EnvironmentUnavailable(Reason.SIGN_IN_REQUIRED)
            return self._refresh(session, session.refresh_token, cancelled)

    def prove(self) -> None:
        """Require a keychain that takes what a sign-in brings. Blocking."""
        self._keychain.prove()

    def store(self, granted: TokenResponse, cancelled: threading.Event) -> None:
        """Keep the tokens of a new sign-in in place of the last ones. Blocking."""
        with self._locked(cancelled):
            scope = granted.scope or " ".join(self.settings.scopes)
            self._store(granted, scope, granted.refresh_token)

    def state(self, cancelled: threading.Event) -> SessionState:
        """Say what there is, without asking the service. Blocking."""
        with self._locked(cancelled):
            session = self._load()
            if session is None:
                return SessionState(signed_in=False)
            decision = self._decide(session)
        return SessionState(
            signed_in=decision is not RefreshDecision.REAUTH,
            scope=session.scope,
            expires_at=session.expires_at / _MILLISECONDS,
            refreshable=session.refresh_token is not None,
        )

    def end(self, cancelled: threading.Event) -> bool | None:
        """Forget the session, then tell the service; say whether that took notice. Blocking.

        None says that nobody was signed in.

        The tokens are gone from the keychain before the service is asked, whatever it says.
        """
        with self._locked(cancelled):
            session = None
            # What cannot be read is removed all the same.
            with contextlib.suppress(CompanionError):
                session = self._load()
            self._fresh = None
            self._custody.clear_session()
        if session is None:
            return None
        tokens = (session.refresh_token, session.access_token)
        try:
            client = Client(self.settings, self._exchange(cancelled))
            told = [client.revoke(token) for token in tokens if token is not None]
        except CompanionError:
            return False
        return all(told)

    def _load(self) -> Session | None:
        session = self._custody.load_session()
        return session if session is not None and session.issuer == self.settings.issuer else None

    def _decide(self, session: Session) -> RefreshDecision:
        meta = SessionMeta(
            expires_at=session.expires_at,
            refresh_expires_at=session.refresh_expires_at,
            stored_at=session.stored_at,
        )
        decision = decide_session(
            meta,
            has_refresh_token=session.refresh_token is not None,
            now=self._wall() * _MILLISECONDS,
        )
        if decision is RefreshDecision.VALID and self._fresh is not None:
            token, until = self._fresh
            if token == session.access_token and self._recency() >= until:
                return RefreshDecision.REFRESH
        return decision

    def _refresh(
        self, session: Session, refresh_token: Secret, cancelled: threading.Event
    ) -> Secret:
        client = Client(self.settings, self._exchange(cancelled))
        try:
            granted = client.refresh(refresh_token, session.scope)
        except GrantRefused:
            self._custody.clear_session()
            raise EnvironmentUnavailable(Reason.SIGN_IN_REQUIRED) from None
        rotated = KEEP if granted.refresh_token is None else granted.refresh_token
        self._store(granted, granted.scope or session.scope, rotated)
        return granted.access_token

    def _store(self, granted: TokenResponse, scope: str | None, refresh_token: object) -> None:
        now = self._wall()
        meta = build_session_meta(
            {"expires_in": granted.expires_in, "scope": scope},
            now=now * _MILLISECONDS,
            issuer=self.settings.issuer,
        )
        if isinstance(meta, Verdict):
            raise error_for(meta.reason)
        self._custody.store_session(
            access_token=granted.access_token, refresh_token=refresh_token, meta=meta
        )
        self._fresh = (
            granted.access_token,
            self._recency() + max(granted.expires_in - _SKEW_SECONDS, 0.0),
        )

    @contextlib.contextmanager
    def _locked(self, cancelled: threading.Event) -> Iterator[None]:
        """Have the session alone, among the threads of this process and among all processes."""
        private_folder(self._folder)
        try:
            with lock_folder(self._folder, cancelled):
                yield
        except OSError as error:
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, f"{self._folder}") from error
