"""One exact backend, `keyring.backends.macOS.Keyring`, and nothing that could stand in.

Rules: never ask keyring to choose a backend; refuse one that the environment configures;
report `device_only` false, because an ordinary interpreter has no entitlement for
`WhenUnlockedThisDeviceOnly`. keyring is imported in the functions that use it.
"""

from __future__ import annotations

from typing import Final

from companion_core.errors import Reason
from companion_core.keyring_backend import (
    KeyringBackend,
    contained,
    delete_if_there,
    pinned_backend,
    service_of,
)
from companion_core.providers import KeychainStatus, KeychainUnavailable

__all__ = ["LoginKeychain"]

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
            contained(_backend, _reason_for)
        except KeychainUnavailable as refused:
            return KeychainStatus(
                ok=False, reason=refused.reason, device_only=False, session_bound=True
            )
        return KeychainStatus(ok=True, reason=Reason.OK, device_only=False, session_bound=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return contained(lambda: _backend().get_password(service_of(account), account), _reason_for)

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        contained(
            lambda: _backend().set_password(service_of(account), account, secret), _reason_for
        )

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        contained(lambda: delete_if_there(_backend(), account), _reason_for)


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that something else has configured or replaced."""
    from keyring.backends.macOS import Keyring  # noqa: PLC0415 - heavy

    # keyring reads KEYCHAIN_PATH when it is imported: it may be gone from the environment.
    if Keyring.keychain is not None:
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    redirected_by = frozenset({"KEYCHAIN_PATH"})
    return pinned_backend(Keyring, "keyring.backends.macOS", "Keyring", redirected_by=redirected_by)


def _reason_for(error: Exception) -> Reason:
    # keyring wraps Security.framework's error; the status is that one's first argument.
    args = (error.__cause__ or error).args
    status = args[0] if args and isinstance(args[0], int) else 0
    return _STATUS_REASONS.get(status, Reason.KEYCHAIN_REFUSED)
