"""The entry point: registers the provider and imports nothing that is slow to import."""

from __future__ import annotations

from companion_core import hookimpl
from companion_core.providers import Keychain
from companion_keychain_linux.secret_service import SecretServiceKeychain


@hookimpl
def companion_keychain() -> Keychain:
    """Return the Secret Service as a keychain."""
    return SecretServiceKeychain()
