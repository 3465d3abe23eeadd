"""Uses exactly one backend, `keyring.backends.Windows.WinVaultKeyring`, and no substitute.

Rules: never ask keyring to choose a backend; refuse one that the environment configures;
credentials persist on the local machine and do not roam, which is set and read back each
time; a replaced secret is deleted first. keyring is imported in the functions that use it.
"""

from __future__ import annotations

from typing import Any, Final

from companion_core.errors import Reason
from companion_core.keyring_backend import (
    KeyringBackend,
    contained,
    delete_if_there,
    pinned_backend,
    service_of,
)
from companion_core.providers import KeychainStatus, KeychainUnavailable

__all__ = ["MAX_UTF16_UNITS", "CredentialManager"]

MAX_UTF16_UNITS: Final = 1280
"""The longest secret: CRED_MAX_CREDENTIAL_BLOB_SIZE is 2560 bytes, and a UTF-16 unit has two."""

_CRED_PERSIST_LOCAL_MACHINE: Final = 2
_ERROR_NO_SUCH_LOGON_SESSION: Final = 1312


class CredentialManager:
    """Satisfies `companion_core.providers.Keychain`; holds no state.

    A secret beyond `MAX_UTF16_UNITS` is `keychain_refused`. Its methods raise only
    `KeychainUnavailable`.
    """

    def status(self) -> KeychainStatus:
        """See `Keychain`: looks for an item that does not exist, which never prompts."""
        try:
            self.get("status")
        except KeychainUnavailable as refused:
            return KeychainStatus(ok=False, reason=refused.reason, device_only=True)
        return KeychainStatus(ok=True, reason=Reason.OK, device_only=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return contained(lambda: _backend().get_password(service_of(account), account), _reason_for)

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        contained(lambda: _set(account, secret), _reason_for)

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        contained(lambda: delete_if_there(_backend(), account), _reason_for)


def _set(account: str, secret: str) -> None:
    if len(secret.encode("utf-16-le")) > 2 * MAX_UTF16_UNITS:
        raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
    # keyring would move a replaced secret to a second credential, so delete it first.
    backend = _backend()
    delete_if_there(backend, account)
    backend.set_password(service_of(account), account, secret)


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that was configured or replaced."""
    from keyring.backends.Windows import WinVaultKeyring  # noqa: PLC0415 - slow to import

    module = "keyring.backends.Windows"
    backend: Any = pinned_backend(WinVaultKeyring, module, "WinVaultKeyring")
    # The default roams with the person's profile; `with_properties` would be ignored.
    backend.persist = "local machine"
    if backend.persist != _CRED_PERSIST_LOCAL_MACHINE:
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    pinned: KeyringBackend = backend
    return pinned


def _reason_for(error: Exception) -> Reason:
    absent = getattr(error, "winerror", None) == _ERROR_NO_SUCH_LOGON_SESSION
    return Reason.KEYCHAIN_ABSENT if absent else Reason.KEYCHAIN_REFUSED
