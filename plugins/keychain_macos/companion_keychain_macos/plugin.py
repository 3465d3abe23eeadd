"""The entry point: registers the provider and imports nothing that is slow to import."""

from __future__ import annotations

from companion_core import hookimpl
from companion_core.providers import Keychain
from companion_keychain_macos.login_keychain import LoginKeychain


@hookimpl
def companion_keychain() -> Keychain:
    """Return the login keychain."""
    return LoginKeychain()
