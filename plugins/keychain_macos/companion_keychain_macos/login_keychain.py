"""One exact backend, `keyring.backends.macOS.Keyring`, and nothing that could stand in.

Rules: never ask keyring to choose a backend; refuse one that the environment configures;
report `device_only` false, because an ordinary interpreter has no entitlement for
`WhenUnlockedThisDeviceOnly`. keyring is imported in the functions that use it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus, KeychainUnavailable

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["LoginKeychain"]

T = TypeVar("T")

_BACKEND: Final = ("keyring.backends.macOS", "Keyring")

# OSStatus values of Security.framework (SecBase.h); every other one is `keychain_refused`.
_STATUS_REASONS: Final = {
    -128: Reason.KEYCHAIN_LOCKED,  # userCanceledErr: the person dismissed the prompt
    -25308: Reason.KEYCHAIN_LOCKED,  # errSecInteractionNotAllowed: locked, and nobody to ask
    -25307: Reason.KEYCHAIN_ABSENT,  # errSecNoDefaultKeychain
    -25294: Reason.KEYCHAIN_ABSENT,  # errSecNoSuchKeychain
}


class LoginKeychain:
    """Satisfies `companion_core.providers.Keychain`; holds no state.

    Every method raises nothing but `KeychainUnavailable`.
    """

    def status(self) -> KeychainStatus:
        """See `Keychain`: whether the backend is the pinned one.

        Whether the keychain is locked shows at the first operation: to look could prompt.
        """
        try:
            _contained(_backend)
        except KeychainUnavailable as refused:
            return KeychainStatus(
                ok=False, reason=refused.reason, device_only=False, session_bound=True
            )
        return KeychainStatus(ok=True, reason=Reason.OK, device_only=False, session_bound=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return _contained(lambda: _backend().get_password(_service(account), account))

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _backend().set_password(_service(account), account, secret))

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _delete(account))


def _delete(account: str) -> None:
    backend = _backend()
    # keyring raises the same error for an absent item and for a refused deletion.
    if backend.get_password(_service(account), account) is not None:
        backend.delete_password(_service(account), account)


def _service(account: str) -> str:
    # One service per account, as on the other systems.
    return f"companion_core/{account}"


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that something else has configured or replaced."""
    from keyring.backends.macOS import Keyring  # noqa: PLC0415 - heavy

    if any(
        name in {"PYTHON_KEYRING_BACKEND", "KEYCHAIN_PATH"} or "KEYRING_PROPERTY_" in name
        for name in os.environ
    ):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    make: Callable[[], Any] = Keyring  # keyring's backends carry no annotations
    backend = make()
    exact = (type(backend).__module__, type(backend).__qualname__) == _BACKEND
    if not exact or vars(backend) or backend.keychain is not None:
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    if not Keyring.viable:
        raise KeychainUnavailable(Reason.KEYCHAIN_ABSENT)
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
    except Exception as error:  # noqa: BLE001 - keyring, Security and codec errors share no base
        reason = _reason_for(error)
    raise KeychainUnavailable(reason)


def _reason_for(error: Exception) -> Reason:
    # keyring wraps Security.framework's error; the status is that one's first argument.
    args = (error.__cause__ or error).args
    status = args[0] if args and isinstance(args[0], int) else 0
    return _STATUS_REASONS.get(status, Reason.KEYCHAIN_REFUSED)
