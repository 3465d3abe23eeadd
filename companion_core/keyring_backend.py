"""Pins one backend class of `keyring`, for the keychain plugins that use it.

Rules: keyring is never asked to choose a backend; a class that was replaced, or that the
environment configures, is untrusted; one service per account; only `KeychainUnavailable` is
raised, and it carries no foreign exception (I-13, I-15). The plugin imports keyring and passes
the class in, so the core does not depend on keyring.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

from companion_core.errors import Reason
from companion_core.providers import KeychainUnavailable

__all__ = ["KeyringBackend", "contained", "delete_if_there", "pinned_backend", "service_of"]

T = TypeVar("T")

_CHOOSER: Final = "PYTHON_KEYRING_BACKEND"
_PROPERTY: Final = "KEYRING_PROPERTY_"  # keyring accepts it anywhere in a variable's name


class KeyringBackend(Protocol):
    """The part of `keyring.backend.KeyringBackend` that plugins use; keyring does not type it."""

    def get_password(self, service: str, username: str) -> str | None:
        """Return the secret; None if there is no such item."""

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the secret, in place of any earlier one."""

    def delete_password(self, service: str, username: str) -> None:
        """Delete the secret; keyring raises the same for an absent item and for a refusal."""


def service_of(account: str) -> str:
    """Return the service under which keyring stores an account; each account has its own.

    So no partial match confuses two accounts, and keyring never moves one account's secret to
    make room for another's, as it does on Windows for accounts that share a service.
    """
    return f"companion_core/{account}"


def pinned_backend(
    kind: type, module: str, name: str, *, redirected_by: frozenset[str] = frozenset()
) -> KeyringBackend:
    """Return a backend of `kind`, proved to be the class `name` of `module`.

    Args:
        kind: the class as it was imported.
        module: the full name of the module that must have defined the class.
        name: the class's qualified name in that module.
        redirected_by: further environment variables that point this class to another store.

    Raises:
        KeychainUnavailable: `keychain_untrusted` if it is another class, or if something
            configures it; `keychain_absent` if it does not work on this system.
    """
    vetoes = redirected_by | {_CHOOSER}
    if any(variable in vetoes or _PROPERTY in variable for variable in os.environ):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    make: Callable[[], Any] = kind
    backend = make()
    found = type(backend).__module__, type(backend).__qualname__
    if found != (module, name) or vars(backend):
        raise KeychainUnavailable(Reason.KEYCHAIN_UNTRUSTED)
    if not type(backend).viable:
        raise KeychainUnavailable(Reason.KEYCHAIN_ABSENT)
    return cast("KeyringBackend", backend)


def delete_if_there(backend: KeyringBackend, account: str) -> None:
    """Delete an account's secret, if there is one; raise if the deletion is refused."""
    service = service_of(account)
    if backend.get_password(service, account) is not None:
        backend.delete_password(service, account)


def contained(operation: Callable[[], T], reason_for: Callable[[Exception], Reason]) -> T:
    """Return what `operation` returns; turn a foreign exception into `KeychainUnavailable`.

    Args:
        operation: one call to the store; may raise `KeychainUnavailable` itself.
        reason_for: returns the reason for one of the store's exceptions. It is not asked about
            a failed import, which is `keychain_untrusted`: the distribution is incomplete.

    Raises:
        KeychainUnavailable: raised outside the handler, because a foreign exception may hold
            the secret and must not become the context.
    """
    try:
        return operation()
    except KeychainUnavailable as refused:
        reason = refused.reason
    except ImportError:
        reason = Reason.KEYCHAIN_UNTRUSTED
    except Exception as error:  # noqa: BLE001 - the stores' libraries share no base class
        reason = reason_for(error)
    raise KeychainUnavailable(reason)
