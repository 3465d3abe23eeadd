"""Conformance of a keychain provider: ten rules, checked against the real store.

The check writes random values under two accounts of its own and removes them.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from companion_core.errors import Reason
from companion_core.providers import (
    KEYCHAIN_REASONS,
    MAX_SECRET_BYTES,
    Keychain,
    KeychainStatus,
    KeychainUnavailable,
)
from companion_core.testing.rulebook import Rulebook

__all__ = ["KEYCHAIN_RULES", "check_keychain"]

KEYCHAIN_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "a provider has the methods status, get, set and delete",
        2: "status returns a KeychainStatus that is ok exactly when its reason is, "
        "else names a keychain reason",
        3: "an operation raises only KeychainUnavailable with a keychain reason, "
        "and every operation of an unusable store raises it",
        4: "an item that was never set reads as None",
        5: "what set stored, get returns unchanged",
        6: "a second set replaces the first",
        7: "accounts do not affect each other",
        8: "the longest secret is stored unchanged, or refused",
        9: "what delete removed reads as None",
        10: "deleting an absent item is fine",
    }
)

_BOOK: Final = Rulebook("keychain", KEYCHAIN_RULES)


def check_keychain(provider: Any) -> None:
    """Check `provider` against `KEYCHAIN_RULES`.

    If the store is locked or absent, only the first three rules can be checked.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected. It never
            holds a value that was stored.
    """
    methods = [getattr(provider, name, None) for name in ("status", "get", "set", "delete")]
    _BOOK.expect(
        1, all(map(callable, methods)), seen=type(provider).__name__, expected="a Keychain"
    )
    folder = f"companion-conformance/{secrets.token_hex(8)}"
    account, neighbour = f"{folder}/one", f"{folder}/two"
    if not _is_usable(provider):
        _check_refusals(provider, account)
        return
    try:
        _check_operations(provider, account, neighbour)
    finally:
        for name in (account, neighbour):
            with contextlib.suppress(Exception):
                provider.delete(name)


def _is_usable(provider: Keychain) -> bool:
    status = _call(provider.status)
    kind = type(status)
    _BOOK.expect(2, kind is KeychainStatus, seen=kind.__name__, expected="KeychainStatus")
    reasons = frozenset({Reason.OK}) if status.ok is True else KEYCHAIN_REASONS
    _BOOK.expect(
        2,
        isinstance(status.ok, bool) and status.reason in reasons,
        seen=f"ok={status.ok!r}, reason={status.reason!r}",
        expected=f"a reason of {sorted(reasons)}",
    )
    return bool(status.ok)


def _check_refusals(provider: Keychain, account: str) -> None:
    for answer in (
        _call(provider.get, account),
        _call(provider.set, account, secrets.token_urlsafe(32)),
        _call(provider.delete, account),
    ):
        refused = isinstance(answer, KeychainUnavailable)
        _BOOK.expect(3, refused, seen=type(answer).__name__, expected="KeychainUnavailable")


def _check_operations(provider: Keychain, account: str, neighbour: str) -> None:
    def expect_stored(rule: int, name: str, value: str | None) -> None:
        seen = _call(provider.get, name)
        _BOOK.expect(
            rule,
            type(seen) is type(value) and seen == value,
            seen="None" if seen is None else f"another {type(seen).__name__}",
            expected="None" if value is None else "the value that was set",
        )

    def succeed(rule: int, operation: Callable[..., Any], *args: str) -> None:
        refused = isinstance(_call(operation, *args), KeychainUnavailable)
        _BOOK.expect(rule, not refused, seen="KeychainUnavailable", expected="a usable store")

    first, second, other = (secrets.token_urlsafe(32) for _ in range(3))
    expect_stored(4, account, None)
    succeed(5, provider.set, account, first)
    expect_stored(5, account, first)
    succeed(6, provider.set, account, second)
    expect_stored(6, account, second)
    succeed(7, provider.set, neighbour, other)
    expect_stored(7, account, second)
    expect_stored(7, neighbour, other)

    longest = secrets.token_hex(MAX_SECRET_BYTES // 2)
    if not isinstance(_call(provider.set, neighbour, longest), KeychainUnavailable):
        expect_stored(8, neighbour, longest)

    succeed(9, provider.delete, neighbour)
    expect_stored(9, neighbour, None)
    expect_stored(7, account, second)
    succeed(10, provider.delete, neighbour)
    succeed(9, provider.delete, account)
    expect_stored(9, account, None)


def _call(operation: Callable[..., Any], *args: str) -> Any:
    """Return what the operation returned, or the `KeychainUnavailable` that it raised."""
    try:
        return operation(*args)
    except Exception as error:  # noqa: BLE001 - rule 3 forbids any other exception
        answer = error
    # Raise outside the handler: the store's exception may hold the secret and must not be the
    # context of ours.
    refused = isinstance(answer, KeychainUnavailable) and answer.reason in KEYCHAIN_REASONS
    expected = "KeychainUnavailable with a keychain reason"
    _BOOK.expect(3, refused, seen=f"{type(answer).__name__} raised", expected=expected)
    return answer
