"""The person's account at a sign-in service, opened from the configuration when it is needed."""

from __future__ import annotations

import functools
import ssl
import threading
from collections.abc import Callable
from typing import Final

from companion_core.authority.sign_in import (
    AccountSession,
    AccountSettings,
    Client,
    Exchange,
    account_scope,
)
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import AccountConfig, Config
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.plugin_host import Chosen
from companion_core.providers import Keychain
from companion_core.system.secret import Secret

__all__ = ["Account", "open_account"]

_FORGETS: Final = "memory"  # the keychain whose secrets end with the process


class Account:
    """The account of a configuration; its keychain is chosen when a token is asked for.

    Args:
        section: [account].
        paths: of the state folder that the session belongs to.
        egress: the doorway.
        context: how servers are verified.
        keychain: chooses the keychain.
    """

    def __init__(
        self,
        section: AccountConfig,
        paths: InstancePaths,
        egress: Egress,
        context: Callable[[], ssl.SSLContext],
        keychain: Callable[[], Chosen[Keychain]],
    ) -> None:
        self.settings = AccountSettings(
            issuer=section.issuer,
            client_id=section.client_id,
            scopes=section.scopes,
            redirect_path=section.redirect_path,
        )
        self._paths = paths
        self._egress = egress
        self._context = context
        self._keychain = functools.cache(keychain)
        self._open = functools.cache(self._open_session)

    @property
    def session(self) -> AccountSession:
        """The session, whether anybody is signed in or not.

        Raises:
            CompanionError: no keychain can be chosen.
        """
        return self._open()

    def token(self, cancelled: threading.Event, *, rejected: Secret | None = None) -> Secret:
        """See `AccountSession.token`."""
        return self.session.token(cancelled, rejected=rejected)

    def client(self, cancelled: threading.Event) -> Client:
        """Find the service, and return this program's side of it. Blocking.

        Raises:
            CompanionError: as `Client`.
        """
        return Client(self.settings, self._exchange(cancelled))

    def require_keeping(self) -> None:
        """Require a keychain that keeps the session longer than this process.

        Raises:
            EnvironmentUnavailable: `keychain_absent`.
        """
        if self._keychain().plugin == _FORGETS:
            raise EnvironmentUnavailable(
                Reason.KEYCHAIN_ABSENT,
                f'keychain.name = "{_FORGETS}" keeps nothing; a sign-in needs a keychain',
            )

    def _exchange(self, cancelled: threading.Event) -> Exchange:
        return Exchange(self._egress, self._context(), cancelled=cancelled)

    def _open_session(self) -> AccountSession:
        chosen = self._keychain()
        return AccountSession(
            self.settings,
            chosen.provider,
            plugin=chosen.plugin,
            scope=account_scope(self.settings, self._paths.account_mark),
            folder=self._paths.account,
            exchange=self._exchange,
        )


def open_account(
    config: Config,
    paths: InstancePaths,
    egress: Egress,
    context: Callable[[], ssl.SSLContext],
    keychain: Callable[[], Chosen[Keychain]],
) -> Account | None:
    """Return the account; None if the configuration has none."""
    if config.account is None:
        return None
    return Account(config.account, paths, egress, context, keychain)
