"""Conformance of a keychain provider: twelve rules, checked against the real store.

The check writes random values under two accounts of its own and removes them.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, cast

from companion_core.errors import Reason
from companion_core.providers import (
    KEYCHAIN_REASONS,
    MAX_SECRET_BYTES,
    Keychain,
    KeychainStatus,
    KeychainUnavailable,
)
from companion_core.testing.overheard import overhear
from companion_core.testing.rulebook import Rulebook, Untried

__all__ = ["KEYCHAIN_RULES", "check_keychain"]

KEYCHAIN_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "a provider has the methods status, get, set and delete; its option_names, if it has "
        "any, are a frozenset of text",
        2: "status returns a KeychainStatus that is ok exactly when its reason is, "
        "else names a keychain reason; its other fields are True, False or, for device_only, None",
        3: "an operation raises only KeychainUnavailable with a keychain reason, "
        "and every operation of an unusable store raises it",
        4: "an item that was never set reads as None",
        5: "what set stored, get returns unchanged",
        6: "a second set replaces the first",
        7: "accounts do not affect each other",
        8: "the longest secret is stored unchanged, or refused",
        9: "what delete removed reads as None",
        10: "deleting an absent item is fine",
        11: "status changes no item",
        12: "no secret is printed or logged, in whatever way",
    }
)

_BOOK: Final = Rulebook("keychain", KEYCHAIN_RULES)


def check_keychain(provider: Any) -> tuple[Untried, ...]:
    """Check `provider` against `KEYCHAIN_RULES`.

    What the process prints and logs meanwhile is searched for the secrets and then discarded.

    Returns:
        what could not be tried: all but the first three rules, if the store is locked or absent.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected. It never
            holds a value that was stored.
    """
    methods = [getattr(provider, name, None) for name in ("status", "get", "set", "delete")]
    _BOOK.expect(
        1, all(map(callable, methods)), seen=type(provider).__name__, expected="a Keychain"
    )
    names: Any = getattr(provider, "option_names", frozenset())
    fits = type(names) is frozenset and all(type(name) is str for name in names)
    _BOOK.expect(1, fits, seen=f"option_names={names!r}", expected="a frozenset of text")
    values = [secrets.token_urlsafe(32) for _ in range(3)]
    values.append(secrets.token_hex(MAX_SECRET_BYTES // 2))
    with overhear() as overheard:
        untried = _check(provider, values)
    printed = any(value in overheard.text for value in values)
    _BOOK.expect(12, not printed, seen="a secret in the output", expected="none of them")
    return untried


def _check(provider: Keychain, values: Sequence[str]) -> tuple[Untried, ...]:
    folder = f"companion-conformance/{secrets.token_hex(8)}"
    account, neighbour = f"{folder}/one", f"{folder}/two"
    status = _status(provider)
    if not status.ok:
        _check_refusals(provider, account, values[0])
        what = f"rules 4 to {max(KEYCHAIN_RULES)}: the store cannot be used ({status.reason})"
        return (Untried(what=what, reason=status.reason),)
    try:
        _check_operations(provider, account, neighbour, values)
    finally:
        for name in (account, neighbour):
            with contextlib.suppress(Exception):
                provider.delete(name)
    return ()


def _status(provider: Keychain) -> KeychainStatus:
    status = _call(provider.status)
    kind = type(status)
    _BOOK.expect(2, kind is KeychainStatus, seen=kind.__name__, expected="KeychainStatus")
    flags: tuple[Any, Any, Any] = (status.ok, status.device_only, status.session_bound)
    ok, device_only, session_bound = flags
    reasons = frozenset({Reason.OK}) if ok is True else KEYCHAIN_REASONS
    _BOOK.expect(
        2,
        type(ok) is bool and status.reason in reasons,
        seen=f"ok={ok!r}, reason={status.reason!r}",
        expected=f"a reason of {sorted(reasons)}",
    )
    plain = type(session_bound) is bool and type(device_only) in {bool, type(None)}
    seen = f"device_only={device_only!r}, session_bound={session_bound!r}"
    _BOOK.expect(2, plain, seen=seen, expected="True, False, or None for device_only")
    return cast("KeychainStatus", status)


def _check_refusals(provider: Keychain, account: str, value: str) -> None:
    for answer in (
        _call(provider.get, account),
        _call(provider.set, account, value),
        _call(provider.delete, account),
    ):
        refused = isinstance(answer, KeychainUnavailable)
        _BOOK.expect(3, refused, seen=type(answer).__name__, expected="KeychainUnavailable")


def _check_operations(
    provider: Keychain, account: str, neighbour: str, values: Sequence[str]
) -> None:
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

    first, second, other, longest = values
    expect_stored(4, account, None)
    succeed(5, provider.set, account, first)
    expect_stored(5, account, first)
    succeed(6, provider.set, account, second)
    expect_stored(6, account, second)
    succeed(7, provider.set, neighbour, other)
    expect_stored(7, account, second)
    expect_stored(7, neighbour, other)
    _status(provider)
    expect_stored(11, account, second)
    expect_stored(11, neighbour, other)

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
