from __future__ import annotations

import pytest

from companion_core.authority.memory_keychain import MemoryKeychain, companion_keychain
from companion_core.testing import check_keychain

pytestmark = pytest.mark.unit


def test_conformance() -> None:
    check_keychain(MemoryKeychain())


def test_each_registration_is_an_empty_store() -> None:
    first, second = companion_keychain(), companion_keychain()
    first.set("account", "secret")
    assert second.get("account") is None
    assert "secret" not in repr(first)
