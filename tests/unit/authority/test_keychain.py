from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_parts import wait_until

from companion_core.authority.keychain import GuardedKeychain, require_account, require_secret
from companion_core.authority.memory_keychain import MemoryKeychain
from companion_core.decisions.custody import Account, is_storable
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    PluginFault,
    Reason,
    UsageError,
)
from companion_core.providers import KEYCHAIN_REASONS, KeychainStatus, KeychainUnavailable
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit


def guarded(provider: Any, *, seconds: float = 5.0) -> GuardedKeychain:
    return GuardedKeychain(provider, instance="one", plugin="fake", deadline_seconds=seconds)


def reason_of(call: Any, kind: type[CompanionError] = CompanionError) -> Reason:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.reason


# --- accounts and limits ------------------------------------------------------------------


def test_the_list_of_accounts_is_closed() -> None:
    assert [str(account) for account in Account] == [
        "access_token",
        "refresh_token",
        "session_meta",
        "loopback_token",
        "personal_key",
    ]


@given(st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text()), st.binary()))
def test_any_other_account_is_unknown(name: object) -> None:
    if name not in list(Account):
        assert reason_of(lambda: require_account(name)) is Reason.ACCOUNT_UNKNOWN


@pytest.mark.parametrize("name", ["canary", "companion/one/canary", "ACCESS_TOKEN", "*"])
def test_the_canary_is_no_account(name: Any) -> None:
    provider = FakeKeychain()
    assert reason_of(lambda: guarded(provider).get(name)) is Reason.ACCOUNT_UNKNOWN
    assert provider.calls == 0


@given(st.one_of(st.text(max_size=20), st.text("é😀x", min_size=2000, max_size=5000)))
def test_a_secret_is_1_to_8192_bytes_of_utf8(text: str) -> None:
    assert is_storable(text) == (0 < len(text.encode("utf-8", "surrogatepass")) <= 8192)


@pytest.mark.parametrize("count", [1, 8191, 8192])
def test_the_limit_counts_bytes(count: int) -> None:
    assert require_secret("x" * count) == "x" * count
    assert is_storable("é" * count) == (2 * count <= 8192)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "secret", ["", "x" * 8193, "\ud800", None, 5, True, b"x", [], {}, Text("x")]
)
def test_what_is_no_secret_never_reaches_the_provider(secret: Any) -> None:
    provider = FakeKeychain()
    call = lambda: guarded(provider).set(Account.ACCESS_TOKEN, secret)  # noqa: E731 - one call, written once
    assert reason_of(call, UsageError) is Reason.SECRET_INVALID
    assert provider.calls == 0


# --- the way through ----------------------------------------------------------------------


@pytest.mark.parametrize("provider", [MemoryKeychain(), FakeKeychain()], ids=["memory", "fake"])
def test_round_trip(provider: Any) -> None:
    keychain = guarded(provider)
    for account in Account:
        assert keychain.get(account) is None
        keychain.set(account, f"first of {account}")
        keychain.set(account, f"of {account}")
    for account in Account:
        assert keychain.get(account) == f"of {account}"
        keychain.delete(account)
        keychain.delete(account)
        assert keychain.get(account) is None


def test_instances_have_accounts_of_their_own() -> None:
    provider = FakeKeychain()
    GuardedKeychain(provider, instance="a").set(Account.ACCESS_TOKEN, "of a")
    GuardedKeychain(provider, instance="b").set(Account.ACCESS_TOKEN, "of b")
    assert provider.items == {
        "companion/a/access_token": "of a",
        "companion/b/access_token": "of b",
    }


@pytest.mark.parametrize("provider", [None, True, "x", [], {}, object(), FakeKeychain.get])
def test_what_is_no_keychain_is_not_wrapped(provider: Any) -> None:
    assert reason_of(lambda: guarded(provider), PluginFault) is Reason.PLUGIN_REGISTRATION_REFUSED


# --- the canary ---------------------------------------------------------------------------


def test_the_first_use_sends_a_canary_and_leaves_nothing() -> None:
    seen: list[tuple[str, str]] = []

    class Recording(FakeKeychain):
        def set(self, account: str, secret: str) -> None:
            seen.append((account, secret))
            super().set(account, secret)

    provider = Recording()
    keychain = guarded(provider)
    assert keychain.get(Account.ACCESS_TOKEN) is None
    assert keychain.get(Account.ACCESS_TOKEN) is None
    [(name, value)] = seen
    assert name == "companion/one/canary"
    assert len(value) >= 43
    assert provider.items == {}
    keychain.prove()
    assert seen[1][1] != value


@pytest.mark.parametrize("knob", ["lossy", "changing"])
def test_a_store_that_loses_or_changes_is_not_used(knob: str) -> None:
    provider = FakeKeychain(**{knob: True})
    keychain = guarded(provider)
    for call in (
        keychain.prove,
        lambda: keychain.get(Account.ACCESS_TOKEN),
        lambda: keychain.set(Account.ACCESS_TOKEN, "secret"),
    ):
        assert reason_of(call, PluginFault) is Reason.KEYCHAIN_UNTRUSTED
    assert provider.items == {}


@pytest.mark.parametrize("knob", ["lossy", "changing"])
def test_a_proved_store_that_turns_bad_is_caught_by_reading_back(knob: str) -> None:
    provider = FakeKeychain()
    keychain = guarded(provider)
    keychain.prove()
    setattr(provider, knob, True)
    call = lambda: keychain.set(Account.ACCESS_TOKEN, "secret")  # noqa: E731 - one call, written once
    assert reason_of(call, PluginFault) is Reason.KEYCHAIN_UNTRUSTED


def test_a_deletion_that_leaves_the_item_is_caught() -> None:
    class Keeping(FakeKeychain):
        def delete(self, account: str) -> None:
            if not account.endswith("canary"):
                return
            super().delete(account)

    keychain = guarded(Keeping())
    keychain.set(Account.ACCESS_TOKEN, "stays")
    call = lambda: keychain.delete(Account.ACCESS_TOKEN)  # noqa: E731 - one call, written once
    assert reason_of(call, PluginFault) is Reason.KEYCHAIN_UNTRUSTED


def test_a_store_that_takes_nothing_new_still_lets_go() -> None:
    provider = FakeKeychain(items={"companion/one/access_token": "old"}, lossy=True)
    guarded(provider).delete(Account.ACCESS_TOKEN)
    assert provider.items == {}


# --- faults -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(Reason))
def test_a_provider_gives_only_keychain_reasons(reason: Reason) -> None:
    class Refusing(FakeKeychain):
        def get(self, account: str) -> str | None:
            raise KeychainUnavailable(reason)

        def set(self, account: str, secret: str) -> None:
            raise KeychainUnavailable(reason)

    expected = reason if reason in KEYCHAIN_REASONS else Reason.KEYCHAIN_REFUSED
    kind = PluginFault if expected is Reason.KEYCHAIN_UNTRUSTED else EnvironmentUnavailable
    keychain = guarded(Refusing())
    assert reason_of(lambda: keychain.get(Account.ACCESS_TOKEN), kind) is expected


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError(), SystemExit(0), StopIteration()])
def test_any_other_exception_is_the_plugin_s_fault(error: BaseException) -> None:
    class Raising(FakeKeychain):
        def set(self, account: str, secret: str) -> None:
            raise error

    with pytest.raises(PluginFault) as caught:
        guarded(Raising()).set(Account.ACCESS_TOKEN, "secret")
    assert caught.value.reason is Reason.PLUGIN_CALL_FAILED
    assert caught.value.plugin == "fake"


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "x"), RuntimeError("can't start new thread")]
)
def test_what_the_system_has_nothing_left_for_is_not_the_plugin_s_fault(error: Exception) -> None:
    class Raising(FakeKeychain):
        def set(self, account: str, secret: str) -> None:
            raise error

    with pytest.raises(EnvironmentUnavailable) as caught:
        guarded(Raising()).set(Account.ACCESS_TOKEN, "secret")
    assert caught.value.reason is Reason.LIMIT_REACHED


@pytest.mark.parametrize("answer", ["", "x" * 8193, "\ud800", 5, True, b"x", [], Text("x")])
def test_an_answer_that_could_not_have_been_stored_is_refused(answer: object) -> None:
    provider = FakeKeychain()
    keychain = guarded(provider)
    keychain.prove()
    provider.items["companion/one/access_token"] = answer  # type: ignore[assignment]  # what a plugin may answer
    call = lambda: keychain.get(Account.ACCESS_TOKEN)  # noqa: E731 - one call, written once
    assert reason_of(call, PluginFault) is Reason.PLUGIN_RESULT_INVALID


@pytest.mark.parametrize("method", ["get", "set", "delete", "prove"])
@pytest.mark.parametrize(
    ("knob", "reason"),
    [("locked", Reason.KEYCHAIN_LOCKED), ("absent", Reason.KEYCHAIN_ABSENT)],
)
def test_locked_and_absent_are_refused(knob: str, reason: Reason, method: str) -> None:
    keychain = guarded(FakeKeychain(**{knob: True}))
    args = {"get": (Account.ACCESS_TOKEN,), "set": (Account.ACCESS_TOKEN, "s"), "prove": ()}
    call = getattr(keychain, method)
    assert (
        reason_of(lambda: call(*args.get(method, (Account.ACCESS_TOKEN,))), EnvironmentUnavailable)
        is reason
    )
    assert keychain.status() == KeychainStatus(ok=False, reason=reason)


# --- the deadline -------------------------------------------------------------------------


def test_a_hanging_store_costs_one_thread_and_recovers() -> None:
    provider = FakeKeychain(hanging=True)
    keychain = guarded(provider, seconds=0.05)
    before = threading.active_count()
    try:
        for _ in range(20):
            call = lambda: keychain.get(Account.ACCESS_TOKEN)  # noqa: E731 - one call, written once
            assert reason_of(call, EnvironmentUnavailable) is Reason.KEYCHAIN_TIMEOUT
        assert wait_until(lambda: provider.calls)  # its thread may only be on its way
        assert provider.calls == 1
        assert threading.active_count() <= before + 1
        assert keychain.status() == KeychainStatus(ok=False, reason=Reason.KEYCHAIN_TIMEOUT)
        assert provider.calls == 1
    finally:
        provider.release()
    provider.hanging = False
    assert keychain._overdue is not None
    keychain._overdue.exception(timeout=30)
    keychain._deadline = 30.0
    assert keychain.get(Account.ACCESS_TOKEN) is None


def test_a_prompt_nobody_answers_ends_with_the_deadline() -> None:
    provider = FakeKeychain(prompting=True)
    keychain = guarded(provider, seconds=0.05)
    try:
        assert keychain.status().reason is Reason.KEYCHAIN_LOCKED
        assert reason_of(keychain.prove, EnvironmentUnavailable) is Reason.KEYCHAIN_TIMEOUT
        assert keychain.status().reason is Reason.KEYCHAIN_TIMEOUT
    finally:
        provider.release()


def test_calls_are_served_one_at_a_time() -> None:
    inside = threading.Semaphore(1)
    overlaps: list[str] = []

    class Watching(FakeKeychain):
        def get(self, account: str) -> str | None:
            if not inside.acquire(blocking=False):
                overlaps.append(account)
                return None
            try:
                return super().get(account)
            finally:
                inside.release()

    keychain = guarded(Watching())

    def work(number: int) -> None:
        for turn in range(20):
            keychain.set(Account.ACCESS_TOKEN, f"{number}-{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []


# --- status -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        KeychainStatus(ok=True, reason=Reason.OK, device_only=True, session_bound=True),
        KeychainStatus(ok=False, reason=Reason.KEYCHAIN_LOCKED),
    ],
)
def test_a_status_is_passed_on_as_a_copy(status: KeychainStatus) -> None:
    class Answering(FakeKeychain):
        def status(self) -> KeychainStatus:
            return status

    seen = guarded(Answering()).status()
    assert seen == status
    assert seen is not status


class OtherStatus(KeychainStatus):
    pass


@pytest.mark.parametrize(
    "answer",
    [
        None,
        True,
        {"ok": True, "reason": "ok"},
        KeychainStatus(ok=True, reason=Reason.KEYCHAIN_LOCKED),
        KeychainStatus(ok=False, reason=Reason.OK),
        KeychainStatus(ok=False, reason=Reason.RATE_LIMITED),
        KeychainStatus(ok=1, reason=Reason.OK),  # type: ignore[arg-type]  # what a plugin may say
        KeychainStatus(ok=True, reason="ok"),  # type: ignore[arg-type]  # what a plugin may say
        KeychainStatus(ok=True, reason=Reason.OK, device_only="yes"),  # type: ignore[arg-type]  # what a plugin may say
        KeychainStatus(ok=True, reason=Reason.OK, session_bound=None),  # type: ignore[arg-type]  # what a plugin may say
        OtherStatus(ok=True, reason=Reason.OK),
    ],
)
def test_a_malformed_status_is_refused(answer: Any) -> None:
    class Answering(FakeKeychain):
        def status(self) -> KeychainStatus:
            return answer

    assert reason_of(guarded(Answering()).status, PluginFault) is Reason.PLUGIN_RESULT_INVALID
