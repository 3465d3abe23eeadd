"""Attacker: a caller that wants an account that is not listed, a list of them, or another store.

Covers I-13 and, from the stricter vectors, keychain_backend/trailing-newline, utf8-length,
exec-timeout and linux-exit-1.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import companion_core.authority
from companion_core.authority.custody import SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken
from companion_core.decisions.custody import Account
from companion_core.errors import CompanionError, Reason
from companion_core.providers import Keychain
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.security

FILES = ("keychain.py", "memory_keychain.py", "custody.py", "loopback_token.py")


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_no_object_lists_the_accounts() -> None:
    assert public(Keychain) == {"status", "get", "set", "delete"}
    assert public(GuardedKeychain) == {"status", "prove", "get", "set", "delete"}
    assert public(LoopbackToken) == {"store", "load", "clear"}
    assert public(SessionCustody) == {"store_session", "load_session", "clear_session", "decide"}


def test_the_custody_reaches_no_file_no_process_and_no_environment() -> None:
    folder = Path(companion_core.authority.__file__ or "").parent
    forbidden = {"os", "io", "pathlib", "subprocess", "socket", "tempfile", "logging", "pickle"}
    for name in FILES:
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not imported & forbidden, name
        assert "open" not in called, name


@pytest.mark.parametrize("knob", ["locked", "absent", "lossy", "changing", "leaking"])
def test_a_store_that_fails_is_never_replaced_by_another(knob: str) -> None:
    provider = FakeKeychain(**{knob: True})
    keychain = GuardedKeychain(provider, instance="one")
    with pytest.raises(CompanionError):
        keychain.set(Account.ACCESS_TOKEN, "secret")
    for turned in ("locked", "absent", "lossy", "changing", "leaking"):
        setattr(provider, turned, False)
    assert keychain.get(Account.ACCESS_TOKEN) is None


def test_a_failed_store_is_never_a_silent_success() -> None:
    provider = FakeKeychain()
    keychain = GuardedKeychain(provider, instance="one")
    keychain.prove()
    provider.lossy = True
    with pytest.raises(CompanionError) as caught:
        keychain.set(Account.REFRESH_TOKEN, "secret")
    assert caught.value.reason is Reason.KEYCHAIN_UNTRUSTED


def test_a_trailing_newline_round_trips() -> None:
    keychain = GuardedKeychain(FakeKeychain(), instance="one")
    keychain.set(Account.SESSION_META, "text\n")
    assert keychain.get(Account.SESSION_META) == "text\n"


def test_the_length_limit_counts_bytes() -> None:
    provider = FakeKeychain()
    keychain = GuardedKeychain(provider, instance="one")
    with pytest.raises(CompanionError) as caught:
        keychain.set(Account.ACCESS_TOKEN, "\N{GRINNING FACE}" * 8192)
    assert caught.value.reason is Reason.SECRET_INVALID
    longest = "\N{GRINNING FACE}" * 2048
    keychain.set(Account.ACCESS_TOKEN, longest)
    assert keychain.get(Account.ACCESS_TOKEN) == longest


def test_a_store_that_hangs_is_refused_at_the_deadline() -> None:
    provider = FakeKeychain(hanging=True)
    keychain = GuardedKeychain(provider, instance="one", deadline_seconds=0.05)
    try:
        with pytest.raises(CompanionError) as caught:
            keychain.set(Account.ACCESS_TOKEN, "secret")
    finally:
        provider.release()
    assert caught.value.reason is Reason.KEYCHAIN_TIMEOUT
