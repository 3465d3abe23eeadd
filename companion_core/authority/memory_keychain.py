"""The core's keychain "memory": secrets live as long as the process and nowhere else.

It is meant for servers without a keychain and for tests. Only a configuration that names it
selects it (I-13).
"""

from __future__ import annotations

from companion_core.errors import Reason
from companion_core.hookspecs import hookimpl
from companion_core.providers import Keychain, KeychainStatus

__all__ = ["MemoryKeychain", "companion_keychain"]


class MemoryKeychain:
    """Secrets in a dictionary of this process."""

    def __init__(self) -> None:
        self._items: dict[str, str] = {}

    def status(self) -> KeychainStatus:
        """See `Keychain`: always usable, and nothing leaves the device."""
        return KeychainStatus(ok=True, reason=Reason.OK, device_only=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return self._items.get(account)

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        self._items[account] = secret

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        self._items.pop(account, None)


@hookimpl
def companion_keychain() -> Keychain:
    """Register the provider."""
    return MemoryKeychain()
