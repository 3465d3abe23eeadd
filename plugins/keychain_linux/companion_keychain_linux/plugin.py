"""The entry point: registers the provider and imports nothing that is slow to import."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from companion_core import hookimpl
from companion_core.providers import Keychain, OptionInvalid, OptionValue
from companion_keychain_linux.secret_service import SecretServiceKeychain


@hookimpl
def companion_keychain(options: Mapping[str, OptionValue] = MappingProxyType({})) -> Keychain:
    """Return the Secret Service as a keychain, with the collection that was configured."""
    collection = options.get("collection", "")
    if not isinstance(collection, str):
        raise OptionInvalid("collection")
    return SecretServiceKeychain(collection)
