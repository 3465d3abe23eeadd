"""A conformance kit must fail what does not conform: one broken store for each rule."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.errors import Reason
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


@pytest.mark.parametrize(
    ("rule", "provider"),
    [
        (1, object()),
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
    assert set(KEYCHAIN_RULES) == set(range(1, 11))


@pytest.mark.parametrize(
    "provider",
    [FakeKeychain(), FakeKeychain(locked=True), FakeKeychain(absent=True), Refusing8192()],
)
def test_what_conforms_passes_and_is_left_as_it_was(provider: FakeKeychain) -> None:
    provider.items["mine"] = "kept"
    check_keychain(provider)
    assert provider.items == {"mine": "kept"}
