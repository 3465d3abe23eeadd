"""One exact backend, `keyring.backends.SecretService.Keyring`, and nothing that could stand in.

Rules: never ask keyring to choose a backend; look at the collection before each operation
and refuse a locked or missing one, so that nothing here prompts or creates; an item that is
not the only one of its name is not read. keyring and secretstorage are imported in the
functions that use them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus, KeychainUnavailable

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend
    from secretstorage import Collection, Item

__all__ = ["SecretServiceKeychain"]

T = TypeVar("T")

_BACKEND: Final = ("keyring.backends.SecretService", "Keyring")


class SecretServiceKeychain:
    """Satisfies `companion_core.providers.Keychain`; holds no state and no connection.

    Every method raises nothing but `KeychainUnavailable`.
    """

    def status(self) -> KeychainStatus:
        """See `Keychain`: whether the default collection exists and is unlocked."""
        try:
            _contained(_look)
        except KeychainUnavailable as refused:
            return KeychainStatus(ok=False, reason=refused.reason, session_bound=True)
        return KeychainStatus(ok=True, reason=Reason.OK, session_bound=True)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        return _contained(lambda: _get(account))

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _set(account, secret))

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        _contained(lambda: _delete(account))


def _look() -> None:
    with _store():
        pass


def _get(account: str) -> str | None:
    with _store() as (backend, collection):
        if _find(collection, account) is None:
            return None
        return backend.get_password(_service(account), account)


def _set(account: str, secret: str) -> None:
    with _store() as (backend, collection):
        _find(collection, account)
        backend.set_password(_service(account), account, secret)


def _delete(account: str) -> None:
    with _store() as (backend, collection):
        if _find(collection, account) is not None:
            backend.delete_password(_service(account), account)


def _service(account: str) -> str:
    # One service per account: no account can be mistaken for another by a partial match.
    return f"companion_core/{account}"


@contextmanager
def _store() -> Iterator[tuple[KeyringBackend, Collection]]:
    """Yield the pinned backend and the default collection, proved unlocked.

    keyring itself would create a missing collection and prompt for a locked one.
    """
    import secretstorage  # noqa: PLC0415 - heavy

    backend = _backend()
    with closing(secretstorage.dbus_init()) as bus:
        collection = secretstorage.Collection(bus)
        if collection.is_locked():
            raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
        yield backend, collection


def _find(collection: Collection, account: str) -> Item | None:
    """Return the one item that keyring would match, by the attributes it searches for.

    Any program of the person may store an item with these attributes, and more; keyring
    takes the first. With several nobody can say which is ours.
    """
    attributes = {"service": _service(account), "username": account}
    items = list(collection.search_items(attributes))
    if not items:
        return None
    if len(items) > 1:
        raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
    if items[0].is_locked():
        raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
    return items[0]


def _backend() -> KeyringBackend:
    """Return the pinned backend; refuse one that something else has configured or replaced."""
    from keyring.backends.SecretService import Keyring  # noqa: PLC0415 - heavy

    if any(name == "PYTHON_KEYRING_BACKEND" or "KEYRING_PROPERTY_" in name for name in os.environ):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    make: Callable[[], Any] = Keyring  # keyring's backends carry no annotations
    backend = make()
    exact = (type(backend).__module__, type(backend).__qualname__) == _BACKEND
    if not exact or vars(backend) or hasattr(backend, "preferred_collection"):
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
    except Exception as error:  # noqa: BLE001 - D-Bus, keyring and codec errors share no base
        reason = _reason_for(error)
    raise KeychainUnavailable(reason)


def _reason_for(error: Exception) -> Reason:
    if isinstance(error, ImportError):
        return Reason.KEYCHAIN_UNTRUSTED  # the distribution's own dependencies are not there
    from keyring.errors import KeyringLocked  # noqa: PLC0415 - heavy
    from secretstorage import exceptions as secret_service  # noqa: PLC0415 - heavy

    locked = (
        KeyringLocked,
        secret_service.LockedException,
        secret_service.PromptDismissedException,
    )
    absent = (
        secret_service.SecretServiceNotAvailableException,
        secret_service.ItemNotFoundException,  # no default collection
        OSError,  # the bus cannot be reached
    )
    if isinstance(error, locked):
        return Reason.KEYCHAIN_LOCKED
    return Reason.KEYCHAIN_ABSENT if isinstance(error, absent) else Reason.KEYCHAIN_REFUSED
