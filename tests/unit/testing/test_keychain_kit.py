"""A conformance kit must fail what does not conform: one broken store for each rule."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from companion_core.errors import Reason
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.snapshots import snapshot_provider
from companion_core.providers import KeychainStatus, KeychainUnavailable
from companion_core.testing import FakeKeychain, check_keychain
from companion_core.testing.keychain_kit import KEYCHAIN_RULES

pytestmark = pytest.mark.unit


class SilentlyLocked(FakeKeychain):
    def get(self, account: str) -> str | None:
        return None


class WrongStatus(FakeKeychain):
    def status(self) -> KeychainStatus:
        return KeychainStatus(ok=True, reason=Reason.KEYCHAIN_LOCKED)


class Defaulting(FakeKeychain):
    def get(self, account: str) -> Any:
        return self.items.get(account, "")


class KeepingFirst(FakeKeychain):
    def set(self, account: str, secret: str) -> None:
        self.items.setdefault(account, secret)


class OneItem(FakeKeychain):
    def get(self, account: str) -> str | None:
        return self.items.get("item")

    def set(self, account: str, secret: str) -> None:
        self.items["item"] = secret

    def delete(self, account: str) -> None:
        self.items.clear()


class Truncating(FakeKeychain):
    def set(self, account: str, secret: str) -> None:
        super().set(account, secret[:4096])


class Undeletable(FakeKeychain):
    def delete(self, account: str) -> None:
        pass


class StrictDelete(FakeKeychain):
    def delete(self, account: str) -> None:
        if account not in self.items:
            raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
        super().delete(account)


class ForeignReason(FakeKeychain):
    def get(self, account: str) -> str | None:
        raise KeychainUnavailable(Reason.RATE_LIMITED)


class Refusing8192(FakeKeychain):
    def set(self, account: str, secret: str) -> None:
        if len(secret) > 1280:
            raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
        super().set(account, secret)


class DeletingStatus(FakeKeychain):
    def status(self) -> KeychainStatus:
        self.items.clear()
        return super().status()


class CreatingStatus(FakeKeychain):
    def status(self) -> KeychainStatus:
        for account in self.items:
            self.items[account] = "reset"
        return super().status()


class Says(FakeKeychain):
    """Says each secret that it stores or reads, in a way of its own."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def set(self, account: str, secret: str) -> None:
        self._say(f"stored {secret}")
        super().set(account, secret)


def say_as_bytes(text: str) -> None:
    print(text.encode(), end="")


def say_on_stderr(text: str) -> None:
    sys.stderr.write(text)


def say_in_c(text: str) -> None:
    ctypes.CDLL(None).puts(text.encode())


def say_aside(text: str) -> None:
    thread = threading.Thread(target=print, args=(text,))
    thread.start()
    thread.join()


SPEAKERS = (
    print,
    say_as_bytes,
    say_aside,
    say_on_stderr,
    lambda text: os.write(1, text.encode()),
    lambda text: os.write(2, text.encode()),
    lambda text: logging.getLogger("some.store").debug("%s", text),
    say_in_c,
)


class Flagged(FakeKeychain):
    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.flags = flags

    def status(self) -> KeychainStatus:
        return replace(super().status(), **self.flags)


@pytest.mark.parametrize(
    ("rule", "provider"),
    [
        (1, object()),
        (1, type("Odd", (FakeKeychain,), {"option_names": ["drawer"]})()),
        (1, type("Odd", (FakeKeychain,), {"option_names": frozenset({5})})()),
        (2, WrongStatus()),
        (3, SilentlyLocked(locked=True)),
        (3, ForeignReason()),
        (3, FakeKeychain(leaking=True)),
        (4, Defaulting()),
        (5, FakeKeychain(lossy=True)),
        (5, FakeKeychain(changing=True)),
        (6, KeepingFirst()),
        (7, OneItem()),
        (8, Truncating()),
        (9, Undeletable()),
        (10, StrictDelete()),
        (2, Flagged(device_only=1)),
        (2, Flagged(device_only="no")),
        (2, Flagged(session_bound=0)),
        (2, Flagged(session_bound=None)),
        (2, Flagged(ok=1)),
        (11, DeletingStatus()),
        (11, CreatingStatus()),
        *((12, Says(speaker)) for speaker in SPEAKERS),
    ],
)
def test_a_store_that_breaks_a_rule_is_named(rule: int, provider: Any) -> None:
    with pytest.raises(AssertionError, match=rf"^keychain rule {rule} \(") as caught:
        check_keychain(provider)
    message = str(caught.value)
    assert KEYCHAIN_RULES[rule] in message
    assert "seen" in message
    assert "expected" in message
    for secret in getattr(provider, "items", {}).values():
        assert secret not in message
    assert caught.value.__context__ is None


def test_every_rule_can_be_broken() -> None:
    assert set(KEYCHAIN_RULES) == set(range(1, 13))


@pytest.mark.parametrize(
    "provider",
    [FakeKeychain(), FakeKeychain(locked=True), FakeKeychain(absent=True), Refusing8192()],
)
def test_what_conforms_passes_and_is_left_as_it_was(provider: FakeKeychain) -> None:
    provider.items["mine"] = "kept"
    untried = check_keychain(provider)
    assert provider.items == {"mine": "kept"}
    usable = provider.status().ok
    assert [each.reason for each in untried] == ([] if usable else [provider.status().reason])


def test_a_locked_store_is_not_said_to_conform() -> None:
    (untried,) = check_keychain(FakeKeychain(locked=True))
    assert untried.what.startswith("rules 4 to 12")
    assert untried.reason is Reason.KEYCHAIN_LOCKED


def test_a_store_that_is_muted_is_heard_all_the_same() -> None:
    snapshot = snapshot_provider(Role.KEYCHAIN, Says(print))
    with pytest.raises(AssertionError, match=r"^keychain rule 12 \("):
        check_keychain(snapshot)


def test_the_output_is_there_again_after_a_check(capfd: pytest.CaptureFixture[str]) -> None:
    streams = (sys.stdout, sys.stderr, logging.getLogger().level)
    check_keychain(FakeKeychain())
    assert (sys.stdout, sys.stderr, logging.getLogger().level) == streams
    os.write(1, b"one")
    print("two")
    assert capfd.readouterr().out == "onetwo\n"
