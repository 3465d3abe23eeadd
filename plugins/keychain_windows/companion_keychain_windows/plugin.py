"""The entry point: registers the provider and imports nothing that is slow to import."""

from __future__ import annotations

from companion_core import hookimpl
from companion_core.providers import Keychain
from companion_keychain_windows.credential_manager import CredentialManager


@hookimpl
def companion_keychain() -> Keychain:
    """Return the Credential Manager as a keychain."""
    return CredentialManager()
