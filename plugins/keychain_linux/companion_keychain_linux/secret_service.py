"""Uses exactly one backend, `keyring.backends.SecretService.Keyring`, and no substitute.

Rules: never ask keyring to choose a backend; check the collection before each operation and
refuse a locked or missing one, so that nothing here prompts or creates; do not read an item if
another has the same name. keyring and secretstorage are imported in the functions that use
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from companion_core.errors import Reason
from companion_core.keyring_backend import KeyringBackend, contained, pinned_backend, service_of
from companion_core.providers import KeychainStatus, KeychainUnavailable

if TYPE_CHECKING:
    from secretstorage import Collection, Item

__all__ = ["SecretServiceKeychain"]


class SecretServiceKeychain:
    """Satisfies `companion_core.providers.Keychain`; holds no connection.

    Its methods raise only `KeychainUnavailable`.

    Args:
        collection: the label of the collection to use, or its D-Bus path; "" for the default one.
    """

    option_names: frozenset[str] = frozenset({"collection"})

    def __init__(self, collection: str = "") -> None:
        self._collection = collection

    def status(self) -> KeychainStatus:
        """See `Keychain`: whether the collection exists and is unlocked."""
        try:
            contained(self._look, _reason_for)
        except KeychainUnavailable as refused:
            return KeychainStatus(ok=False, reason=refused.reason, session_bound=True)
        return KeychainStatus(ok=True, reason=Reason.OK, session_bound=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return contained(lambda: self._get(account), _reason_for)

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        contained(lambda: self._set(account, secret), _reason_for)

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        contained(lambda: self._delete(account), _reason_for)

    def _look(self) -> None:
        with _store(self._collection):
            pass

    def _get(self, account: str) -> str | None:
        with _store(self._collection) as (backend, collection):
            if _find(collection, account) is None:
                return None
            return backend.get_password(service_of(account), account)

    def _set(self, account: str, secret: str) -> None:
        with _store(self._collection) as (backend, collection):
            _find(collection, account)
            backend.set_password(service_of(account), account, secret)

    def _delete(self, account: str) -> None:
        with _store(self._collection) as (backend, collection):
            if _find(collection, account) is not None:
                backend.delete_password(service_of(account), account)


@contextmanager
def _store(name: str) -> Iterator[tuple[KeyringBackend, Collection]]:
    """Yield the pinned backend and the collection that it uses, proved unlocked.

    keyring itself would create a missing collection and prompt for a locked one.
    """
    import secretstorage  # noqa: PLC0415 - slow to import

    backend = _backend()
    with closing(secretstorage.dbus_init()) as bus:
        collection = _named(bus, name) if name else secretstorage.Collection(bus)
        if collection.is_locked():
            raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
        if name:
            # On this one object: `_backend` refuses a class that leads elsewhere.
            vars(backend)["preferred_collection"] = collection.collection_path
        yield backend, collection


def _named(bus: Any, name: str) -> Collection:
    """Return the only collection with this label, or the one at this D-Bus path."""
    import secretstorage  # noqa: PLC0415 - slow to import

    if name.startswith("/"):
        return secretstorage.Collection(bus, name)
    every = secretstorage.get_all_collections(bus)
    found = [collection for collection in every if collection.get_label() == name]
    if not found:
        raise KeychainUnavailable(Reason.KEYCHAIN_COLLECTION_MISSING)
    if len(found) > 1:
        raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
    return found[0]


def _find(collection: Collection, account: str) -> Item | None:
    """Return the only item that has the attributes which keyring searches for.

    Any program of the person may store an item with these attributes, and keyring reads the
    first. If there are several, no one can tell which is ours.
    """
    attributes = {"service": service_of(account), "username": account}
    items = list(collection.search_items(attributes))
    if not items:
        return None
    if len(items) > 1:
        raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
    if items[0].is_locked():
        raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
    return items[0]


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that was configured or replaced."""
    from keyring.backends.SecretService import Keyring  # noqa: PLC0415 - slow to import

    if hasattr(Keyring, "preferred_collection"):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    return pinned_backend(Keyring, "keyring.backends.SecretService", "Keyring")


def _reason_for(error: Exception) -> Reason:
    from keyring.errors import KeyringLocked  # noqa: PLC0415 - slow to import
    from secretstorage import exceptions as secret_service  # noqa: PLC0415 - slow to import

    locked = (
        KeyringLocked,
        secret_service.LockedException,
        secret_service.PromptDismissedException,
    )
    absent = (
        secret_service.SecretServiceNotAvailableException,
        OSError,  # the bus cannot be reached
    )
    if isinstance(error, locked):
        return Reason.KEYCHAIN_LOCKED
    if isinstance(error, secret_service.ItemNotFoundException):
        return Reason.KEYCHAIN_COLLECTION_MISSING
    return Reason.KEYCHAIN_ABSENT if isinstance(error, absent) else Reason.KEYCHAIN_REFUSED
