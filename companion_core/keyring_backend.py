"""For keychain plugins that stand on one class of `keyring`: that class, and no stand-in.

Rules: keyring is never asked to choose a backend; a class that something else replaced, or
that the environment configures, is untrusted; one service per account; nothing but
`KeychainUnavailable` leaves, and no foreign exception with it (I-13, I-15). The plugin imports
keyring and hands its class over: the core has no need of it.
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
_PROPERTY: Final = "KEYRING_PROPERTY_"  # keyring looks for it anywhere in a name


class KeyringBackend(Protocol):
    """What the plugins use of `keyring.backend.KeyringBackend`, which carries no annotations."""

    def get_password(self, service: str, username: str) -> str | None:
        """Return the secret, or None where there is none."""

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the secret in place of the one there."""

    def delete_password(self, service: str, username: str) -> None:
        """Delete the secret; keyring raises for an absent one as for a refusal."""


def service_of(account: str) -> str:
    """Return the service under which keyring stores an account: one each.

    So no account is mistaken for another by a partial match, and none is moved aside to make
    room for another, as keyring does on Windows where two share a service.
    """
    return f"companion_core/{account}"


def pinned_backend(
    kind: type, module: str, name: str, *, redirected_by: frozenset[str] = frozenset()
) -> KeyringBackend:
    """Return a backend of `kind`, proved to be the class `name` of `module`.

    Args:
        kind: the class as it was imported.
        module: the full name of the module that must have defined it.
        name: the class's qualified name there.
        redirected_by: further names of environment variables that point this class elsewhere.

    Raises:
        KeychainUnavailable: `keychain_untrusted` when the class is another one, or something
            configures it; `keychain_absent` when it does not work on this system.
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
    """Delete an account's secret; an absent one is fine, a refused deletion raises."""
    service = service_of(account)
    if backend.get_password(service, account) is not None:
        backend.delete_password(service, account)


def contained(operation: Callable[[], T], reason_for: Callable[[Exception], Reason]) -> T:
    """Return what `operation` returns; every foreign exception becomes `KeychainUnavailable`.

    Args:
        operation: one call to the store; may raise `KeychainUnavailable` itself.
        reason_for: the reason of the store's own exceptions. A missing library never reaches
            it: that is `keychain_untrusted`, for the distribution is not whole.

    Raises:
        KeychainUnavailable: outside the handler, for a foreign exception may hold the secret
            and must not be the context either.
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
