from __future__ import annotations

import pytest
from secret_parts import hide

from companion_core.authority.custody import SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken, generate_loopback_token
from companion_core.decisions.custody import Account, SessionMeta
from companion_core.errors import Reason, UsageError
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit

META = SessionMeta(expires_at=2_000_000)


def keychain(provider: FakeKeychain | None = None) -> GuardedKeychain:
    return GuardedKeychain(provider or FakeKeychain(), instance="one")


def test_a_generated_token_has_256_bits_and_is_new_each_time() -> None:
    tokens = {generate_loopback_token().reveal() for _ in range(50)}
    assert len(tokens) == 50
    assert {len(token) for token in tokens} == {43}


def test_a_start_rotates_and_shutdown_clears() -> None:
    provider = FakeKeychain()
    loopback = LoopbackToken(keychain(provider))
    assert loopback.load() is None
    first, second = generate_loopback_token(), generate_loopback_token()
    loopback.store(first)
    loopback.store(second)
    assert loopback.load() == second
    assert first.reveal() not in provider.items.values()
    loopback.clear()
    loopback.clear()
    assert loopback.load() is None


@pytest.mark.parametrize("token", ["", "x" * 42, "x" * 8193, "x" * 42 + " ", "é" * 40, None, 5])
def test_a_weak_token_is_refused(token: object) -> None:
    provider = FakeKeychain()
    with pytest.raises(UsageError):
        LoopbackToken(keychain(provider)).store(hide(token))
    assert provider.calls == 0


def test_the_same_token_is_no_rotation() -> None:
    loopback = LoopbackToken(keychain())
    loopback.store(Secret("x" * 43))
    with pytest.raises(UsageError) as caught:
        loopback.store(Secret("x" * 43))
    assert caught.value.reason is Reason.SECRET_INVALID


def test_logout_leaves_the_loopback_token() -> None:
    guarded = keychain()
    loopback, custody = LoopbackToken(guarded), SessionCustody(guarded)
    loopback.store(Secret("x" * 43))
    custody.store_session(access_token=hide("a"), meta=META)
    custody.clear_session()
    assert loopback.load() == Secret("x" * 43)
    assert guarded.get(Account.ACCESS_TOKEN) is None
