"""One exact backend, `keyring.backends.Windows.WinVaultKeyring`, and no stand-in for it.

Rules: never ask keyring to choose a backend; refuse one that the environment configures;
credentials persist on the local machine and do not roam, which is set and read back each
time; no old secret stays behind. keyring is imported in the functions that use it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus, KeychainUnavailable

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["MAX_UTF16_UNITS", "CredentialManager"]

T = TypeVar("T")

MAX_UTF16_UNITS: Final = 1280
"""The longest secret: CRED_MAX_CREDENTIAL_BLOB_SIZE is 2560 bytes, two per UTF-16 unit."""

_BACKEND: Final = ("keyring.backends.Windows", "WinVaultKeyring")
_CRED_PERSIST_LOCAL_MACHINE: Final = 2
_ERROR_NO_SUCH_LOGON_SESSION: Final = 1312


class CredentialManager:
    """Satisfies `companion_core.providers.Keychain`; holds no state.

    A secret beyond `MAX_UTF16_UNITS` is `keychain_refused`. Every method raises nothing but
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
        return _contained(lambda: _backend().get_password(_service(account), account))

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _set(account, secret))

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _delete(account))


def _set(account: str, secret: str) -> None:
    if len(secret.encode("utf-16-le")) > 2 * MAX_UTF16_UNITS:
        raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
    # keyring moves the secret it replaces to a second credential; so there is none to replace.
    _delete(account)
    _backend().set_password(_service(account), account, secret)


def _delete(account: str) -> None:
    backend = _backend()
    if backend.get_password(_service(account), account) is not None:
        backend.delete_password(_service(account), account)


def _service(account: str) -> str:
    # One service per account: keyring shuffles credentials when two accounts share one.
    return f"companion_core/{account}"


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that something else has configured or replaced."""
    from keyring.backends.Windows import WinVaultKeyring  # noqa: PLC0415 - heavy

    if any(name == "PYTHON_KEYRING_BACKEND" or "KEYRING_PROPERTY_" in name for name in os.environ):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    make: Callable[[], Any] = WinVaultKeyring  # keyring's backends carry no annotations
    backend = make()
    if (type(backend).__module__, type(backend).__qualname__) != _BACKEND or vars(backend):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    if not WinVaultKeyring.viable:
        raise KeychainUnavailable(Reason.KEYCHAIN_ABSENT)
    # The default roams with the person's profile; `with_properties` would be ignored.
    backend.persist = "local machine"
    if backend.persist != _CRED_PERSIST_LOCAL_MACHINE:
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    return cast("KeyringBackend", backend)


def _contained(operation: Callable[[], T]) -> T:
    """Return what `operation` returns; every foreign exception becomes `KeychainUnavailable`.

    It is raised outside the handler: a foreign exception may hold the secret, so it must not
    be the context either.
    """
    try:
        return operation()
    except KeychainUnavailable as refused:
        reason = refused.reason
    except ImportError:
        reason = Reason.KEYCHAIN_UNTRUSTED  # the distribution's own dependencies are not there
    except Exception as error:  # noqa: BLE001 - pywintypes and codec errors share no base
        absent = getattr(error, "winerror", None) == _ERROR_NO_SUCH_LOGON_SESSION
        reason = Reason.KEYCHAIN_ABSENT if absent else Reason.KEYCHAIN_REFUSED
    raise KeychainUnavailable(reason)
