"""Run inside `dbus-run-session`, one scenario per process, by test_keychain_secret_service.py.

A scenario asserts; the process's exit status is its result. Warnings are errors, so a
D-Bus connection that stays open fails it too.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import secretstorage
from companion_keychain_linux.plugin import companion_keychain
from unlocked_keyring import unlock

from companion_core.authority.custody import SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken
from companion_core.authority.loopback_token import generate_loopback_token as new_token
from companion_core.decisions.custody import Account, SessionMeta
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.providers import KeychainStatus, KeychainUnavailable, OptionInvalid
from companion_core.system.secret import Secret
from companion_core.testing import check_keychain

# An unanswered prompt would take 25 seconds. This is far below, so a refusal that waited for the
# deadline shows as `keychain_timeout`.
DEADLINE_SECONDS = 10.0


def guarded(**options: str) -> GuardedKeychain:
    return GuardedKeychain(
        companion_keychain(options), instance="integration", deadline_seconds=DEADLINE_SECONDS
    )


@contextmanager
def default_collection() -> Iterator[secretstorage.Collection]:
    with closing(secretstorage.dbus_init()) as bus:
        yield secretstorage.Collection(bus)


def expect_refusal(reason: Reason, **options: str) -> None:
    """Every operation is refused for `reason`, and `status` says the same."""
    keychain = guarded(**options)
    assert keychain.status() == KeychainStatus(ok=False, reason=reason, session_bound=True)
    for operation in (
        lambda: keychain.get(Account.ACCESS_TOKEN),
        lambda: keychain.set(Account.ACCESS_TOKEN, "refused"),
        lambda: keychain.delete(Account.ACCESS_TOKEN),
        keychain.prove,
    ):
        with pytest.raises(CompanionError) as refused:
            operation()
        assert refused.value.reason is reason


def conformance() -> None:
    check_keychain(companion_keychain({}))


def round_trip() -> None:
    keychain = guarded()
    assert keychain.status() == KeychainStatus(ok=True, reason=Reason.OK, session_bound=True)
    keychain.prove()
    longest = "s" * 8192
    for account in Account:
        assert keychain.get(account) is None
        keychain.set(account, longest)
        keychain.set(account, f"secret of {account}")
    for account in Account:
        assert keychain.get(account) == f"secret of {account}"
        keychain.delete(account)
        keychain.delete(account)
        assert keychain.get(account) is None
    keychain.set(Account.ACCESS_TOKEN, longest)
    assert keychain.get(Account.ACCESS_TOKEN) == longest
    keychain.set(Account.ACCESS_TOKEN, "ends with a newline\n")
    assert keychain.get(Account.ACCESS_TOKEN) == "ends with a newline\n"
    keychain.delete(Account.ACCESS_TOKEN)
    with default_collection() as collection:
        assert list(collection.get_all_items()) == []


def custody() -> None:
    session, loopback = SessionCustody(guarded()), LoopbackToken(guarded())
    meta = SessionMeta(expires_at=2e12, scope="read write", stored_at=1e12)
    session.store_session(access_token=Secret("access"), refresh_token=Secret("refresh"), meta=meta)
    token = new_token()
    loopback.store(token)
    loaded = SessionCustody(guarded()).load_session()
    assert loaded is not None
    assert (loaded.access_token, loaded.refresh_token) == (Secret("access"), Secret("refresh"))
    session.clear_session()
    assert session.load_session() is None
    assert loopback.load() == token
    loopback.clear()
    assert loopback.load() is None


def named_collection() -> None:
    session = "/org/freedesktop/secrets/collection/session"
    with closing(secretstorage.dbus_init()) as bus:
        default, other = secretstorage.Collection(bus), secretstorage.Collection(bus, session)
        label = default.get_label()
        assert label
        for name, used, unused in ((label, default, other), (session, other, default)):
            keychain = guarded(collection=name)
            keychain.prove()
            keychain.set(Account.ACCESS_TOKEN, "kept")
            assert keychain.get(Account.ACCESS_TOKEN) == "kept"
            assert [item.get_secret() for item in used.get_all_items()] == [b"kept"]
            assert list(unused.get_all_items()) == []
            keychain.delete(Account.ACCESS_TOKEN)
    check_keychain(companion_keychain({"collection": session}))
    expect_refusal(Reason.KEYCHAIN_COLLECTION_MISSING, collection="no such one")
    expect_refusal(Reason.KEYCHAIN_COLLECTION_MISSING, collection=f"{session}/none")
    with pytest.raises(OptionInvalid):
        companion_keychain({"collection": 5})


def locked() -> None:
    guarded().set(Account.ACCESS_TOKEN, "kept")
    with default_collection() as collection:
        collection.lock()
        assert collection.is_locked()
    expect_refusal(Reason.KEYCHAIN_LOCKED)


def refused_as_locked() -> None:
    expect_refusal(Reason.KEYCHAIN_LOCKED)


def store_and_leave() -> None:
    guarded().set(Account.REFRESH_TOKEN, "from the session before")


def find_again() -> None:
    assert guarded().get(Account.REFRESH_TOKEN) == "from the session before"


def no_collection() -> None:
    expect_refusal(Reason.KEYCHAIN_COLLECTION_MISSING)
    with closing(secretstorage.dbus_init()) as bus:
        paths = [each.collection_path for each in secretstorage.get_all_collections(bus)]
    assert paths == ["/org/freedesktop/secrets/collection/session"], paths
    assert not list(Path.home().glob(".local/share/keyrings/*.keyring"))


def refused_as_absent() -> None:
    expect_refusal(Reason.KEYCHAIN_ABSENT)


def silent_bus() -> None:
    keychain = GuardedKeychain(companion_keychain({}), instance="silent", deadline_seconds=0.5)
    assert keychain.status().reason is Reason.KEYCHAIN_TIMEOUT
    for _ in range(100):  # refused at once: none of these waits for the deadline
        with pytest.raises(EnvironmentUnavailable) as refused:
            keychain.get(Account.ACCESS_TOKEN)
        assert refused.value.reason is Reason.KEYCHAIN_TIMEOUT


def several_matches() -> None:
    keychain = guarded()
    keychain.set(Account.ACCESS_TOKEN, "ours")
    name = "companion/integration/access_token"
    with default_collection() as collection:
        planted = {"service": f"companion_core/{name}", "username": name, "application": "other"}
        collection.create_item("planted", planted, b"not ours")
    for operation in (
        lambda: keychain.get(Account.ACCESS_TOKEN),
        lambda: keychain.set(Account.ACCESS_TOKEN, "new"),
        lambda: keychain.delete(Account.ACCESS_TOKEN),
    ):
        with pytest.raises(CompanionError) as refused:
            operation()
        assert refused.value.reason is Reason.KEYCHAIN_REFUSED


def not_text() -> None:
    name = "companion/integration/access_token"
    with default_collection() as collection:
        planted = {"service": f"companion_core/{name}", "username": name}
        collection.create_item("planted", planted, b"\xff\xfe")
    with pytest.raises(KeychainUnavailable) as refused:
        companion_keychain({}).get(name)
    assert refused.value.reason is Reason.KEYCHAIN_REFUSED
    assert refused.value.__context__ is None  # a UnicodeDecodeError holds the bytes


def redirected() -> None:
    for name in ("PYTHON_KEYRING_BACKEND", "KEYRING_PROPERTY_PREFERRED_COLLECTION"):
        os.environ[name] = "/org/freedesktop/secrets/collection/session"
        expect_refusal(Reason.KEYCHAIN_UNTRUSTED)
        del os.environ[name]
    assert guarded().get(Account.ACCESS_TOKEN) is None


SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        conformance,
        custody,
        find_again,
        locked,
        named_collection,
        no_collection,
        not_text,
        redirected,
        refused_as_absent,
        refused_as_locked,
        round_trip,
        several_matches,
        silent_bus,
        store_and_leave,
    )
}


def never(*_: object, **__: object) -> None:
    raise AssertionError("it would have prompted or created a collection")


def main(name: str, password: str | None = None) -> None:
    # No prompter can start here, and a prompt would look like a lock: so calls for one are counted.
    secretstorage.Collection.unlock = never
    secretstorage.collection.create_collection = never
    if password is not None:
        unlock(password)
    SCENARIOS[name]()
    gc.collect()  # an unclosed connection warns when it is collected


if __name__ == "__main__":
    main(*sys.argv[1:])
