"""Uses exactly one backend, `keyring.backends.macOS.Keyring`, and no substitute.

Rules: never ask keyring to choose a backend; refuse one that the environment configures;
report `device_only` as false, because an ordinary interpreter lacks the entitlement for
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

# OSStatus values of Security.framework (SecBase.h); any other is `keychain_refused`.
_STATUS_REASONS: Final = {
    -128: Reason.KEYCHAIN_LOCKED,  # userCanceledErr: the person dismissed the prompt
    -25308: Reason.KEYCHAIN_LOCKED,  # errSecInteractionNotAllowed: locked, no prompt possible
    -25307: Reason.KEYCHAIN_ABSENT,  # errSecNoDefaultKeychain
    -25294: Reason.KEYCHAIN_ABSENT,  # errSecNoSuchKeychain
}


class LoginKeychain:
    """Satisfies `companion_core.providers.Keychain`; holds no state.

    Its methods raise only `KeychainUnavailable`.
    """

    def status(self) -> KeychainStatus:
        """See `Keychain`: checks only that the backend is the pinned one.

        It does not check whether the keychain is locked, because that could prompt; the first
        operation shows it.
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
    """Return the pinned backend; refuse one that was configured or replaced."""
    from keyring.backends.macOS import Keyring  # noqa: PLC0415 - slow to import

    # keyring reads KEYCHAIN_PATH at import, so the variable may be unset again by now.
    if Keyring.keychain is not None:
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    redirected_by = frozenset({"KEYCHAIN_PATH"})
    return pinned_backend(Keyring, "keyring.backends.macOS", "Keyring", redirected_by=redirected_by)


def _reason_for(error: Exception) -> Reason:
    # keyring wraps the error of Security.framework, whose first argument is the status.
    args = (error.__cause__ or error).args
    status = args[0] if args and isinstance(args[0], int) else 0
    return _STATUS_REASONS.get(status, Reason.KEYCHAIN_REFUSED)
