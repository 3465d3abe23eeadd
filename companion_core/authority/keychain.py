"""The core's guard around the one keychain provider that was selected (I-13).

Rules: a closed list of accounts, `get`/`set`/`delete`, no listing and no fallback. Every call
runs in a worker with a deadline; every write is read back; nothing is stored or read before a
canary has gone through the provider unchanged. No exception carries a secret (I-15).
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, Final, cast

from companion_core.decisions.custody import Account, is_storable, is_token
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    PluginFault,
    Reason,
    error_for,
)
from companion_core.providers import KEYCHAIN_REASONS, Keychain, KeychainStatus, KeychainUnavailable
from companion_core.system.deadline import start_call
from companion_core.system.lacks import is_limit, lack_of
from companion_core.system.secret import Secret

__all__ = [
    "GuardedKeychain",
    "load_stored",
    "load_token",
    "require_account",
    "require_secret",
    "require_token",
]

DEADLINE_SECONDS: Final = 5.0
_CANARY: Final = "canary"


def require_account(value: object) -> Account:
    """Return the account of that exact name.

    Raises:
        CompanionError: `account_unknown`.
    """
    if isinstance(value, str) and value in set(Account):
        return Account(value)
    raise CompanionError(Reason.ACCOUNT_UNKNOWN)


def require_secret(value: object) -> str:
    """Return `value` when it can be stored.

    Raises:
        UsageError: `secret_invalid`.
    """
    if not is_storable(value):
        raise error_for(Reason.SECRET_INVALID)
    return value


class GuardedKeychain:
    """The only way to a keychain provider.

    Blocking: an event loop calls it in a worker. Calls are served one at a time. While a call is
    overdue, every further one is refused at once; so a prompt that nobody answers costs one
    thread.

    Args:
        provider: what the selected plugin registered.
        instance: names the companion's accounts (`InstancePaths.keychain_scope`); each
            companion has its own.
        plugin: the name that the provider's faults carry.
        deadline_seconds: for each single call of the provider.

    Raises:
        PluginFault: `plugin_registration_refused` for a provider that is no `Keychain`; from
            the methods `plugin_call_failed`, `plugin_result_invalid`, `keychain_untrusted`.
        EnvironmentUnavailable: from the methods, a keychain reason.
    """

    def __init__(
        self,
        provider: Keychain,
        *,
        instance: str,
        plugin: str = "keychain",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        if not isinstance(provider, Keychain):
            raise PluginFault(Reason.PLUGIN_REGISTRATION_REFUSED, plugin)
        self._provider = provider
        self._prefix = f"companion/{instance}/"
        self._plugin = plugin
        self._deadline = deadline_seconds
        self._turn = threading.Lock()
        self._overdue: Future[Any] | None = None
        self._proved = False

    def status(self) -> KeychainStatus:
        """Say whether the store is usable now; a store that does not answer is not."""
        try:
            with self._turn:
                seen = self._call("status")
        except EnvironmentUnavailable as error:
            return KeychainStatus(ok=False, reason=error.reason)
        if type(seen) is not KeychainStatus:  # a subclass could answer differently twice
            raise self._fault(Reason.PLUGIN_RESULT_INVALID)
        status: Any = replace(seen)  # our own copy: the provider may still hold the other
        well_formed = (
            isinstance(status.ok, bool)
            and isinstance(status.reason, Reason)
            and status.reason in ({Reason.OK} if status.ok else KEYCHAIN_REASONS)
            and (status.device_only is None or isinstance(status.device_only, bool))
            and isinstance(status.session_bound, bool)
        )
        if not well_formed:
            raise self._fault(Reason.PLUGIN_RESULT_INVALID)
        return cast("KeychainStatus", status)

    def prove(self) -> None:
        """Write, read and delete a random value under an account of its own.

        The first `get` or `set` does it in any case; `doctor` calls it by itself.

        Raises:
            PluginFault: `keychain_untrusted` when the value was lost, changed or not deleted.
        """
        with self._turn:
            self._prove()

    def get(self, account: Account) -> str | None:
        """Return the secret, or None when the account has none."""
        name = self._name(account)
        with self._turn:
            self._require_proof()
            return self._read(name)

    def set(self, account: Account, secret: str) -> None:
        """Store or replace the secret, and read it back.

        Raises:
            UsageError: `secret_invalid`; nothing was called.
        """
        name, secret = self._name(account), require_secret(secret)
        with self._turn:
            self._require_proof()
            self._call("set", name, secret)
            if self._read(name) != secret:
                raise self._fault(Reason.KEYCHAIN_UNTRUSTED)

    def delete(self, account: Account) -> None:
        """Remove the secret and see that it is gone; an absent one is fine.

        It needs no canary: a store that takes nothing new must still remove what it has.
        """
        name = self._name(account)
        with self._turn:
            self._call("delete", name)
            if self._call("get", name) is not None:
                raise self._fault(Reason.KEYCHAIN_UNTRUSTED)

    def _name(self, account: object) -> str:
        return f"{self._prefix}{require_account(account)}"

    def _require_proof(self) -> None:
        if not self._proved:
            self._prove()

    def _prove(self) -> None:
        self._proved = False
        name, value = f"{self._prefix}{_CANARY}", secrets.token_urlsafe(32)
        self._call("set", name, value)
        seen = self._call("get", name)
        self._call("delete", name)
        left = self._call("get", name)
        if type(seen) is not str or seen != value or left is not None:
            raise self._fault(Reason.KEYCHAIN_UNTRUSTED)
        self._proved = True

    def _read(self, name: str) -> str | None:
        seen = self._call("get", name)
        if seen is None:
            return None
        if not is_storable(seen):
            raise self._fault(Reason.PLUGIN_RESULT_INVALID)
        return seen

    def _call(self, method: str, *args: str) -> Any:
        """Call the provider in a worker; the caller holds the turn.

        An exception of the provider is replaced, not chained: it may hold the secret.
        """
        if self._overdue is not None and not self._overdue.done():
            raise EnvironmentUnavailable(Reason.KEYCHAIN_TIMEOUT)
        future = start_call(lambda: getattr(self._provider, method)(*args))
        if not wait([future], timeout=self._deadline).done:
            self._overdue = future
            raise EnvironmentUnavailable(Reason.KEYCHAIN_TIMEOUT)
        error = future.exception()
        if error is None:
            return future.result()
        if not isinstance(error, KeychainUnavailable):
            if is_limit(error):
                raise lack_of(error)
            raise self._fault(Reason.PLUGIN_CALL_FAILED)
        reason: Any = getattr(error, "reason", None)
        if not (isinstance(reason, Reason) and reason in KEYCHAIN_REASONS):
            reason = Reason.KEYCHAIN_REFUSED
        raise error_for(reason, plugin=self._plugin)

    def _fault(self, reason: Reason) -> PluginFault:
        return PluginFault(reason, self._plugin)


def load_stored(keychain: GuardedKeychain, account: Account) -> str | None:
    """Return what is stored; a value that could never have been stored counts as absent."""
    try:
        return keychain.get(account)
    except PluginFault as fault:
        if fault.reason is Reason.PLUGIN_RESULT_INVALID:
            return None
        raise


def load_token(keychain: GuardedKeychain, account: Account) -> Secret | None:
    """Return the stored token; None when no valid one is stored."""
    stored = load_stored(keychain, account)
    return Secret(stored) if is_token(stored) else None


def require_token(value: object) -> Secret:
    """Return `value` when it is a `Secret` of visible ASCII that can be stored.

    Raises:
        UsageError: `secret_invalid`.
    """
    if not (isinstance(value, Secret) and is_token(value.reveal())):
        raise error_for(Reason.SECRET_INVALID)
    return value
