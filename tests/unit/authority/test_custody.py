from __future__ import annotations

import itertools
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secret_parts import hide

from companion_core.authority.custody import KEEP, SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.decisions.custody import SessionMeta, build_session_meta
from companion_core.decisions.oauth import (
    TokenResponse,
    check_granted_scope,
    validate_token_response,
)
from companion_core.decisions.oauth.token import RefreshDecision
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.providers import KeychainUnavailable
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit

META = SessionMeta(expires_at=2_000_000, scope="read", issuer="https://issuer", stored_at=1_000_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Interrupted(FakeKeychain):
    """Refuses every change after the first `left`."""

    def __init__(self, items: dict[str, str], left: int) -> None:
        super().__init__(items=items)
        self.left = left

    def set(self, account: str, secret: str) -> None:
        self.change(account)
        super().set(account, secret)

    def delete(self, account: str) -> None:
        self.change(account)
        super().delete(account)

    def change(self, account: str) -> None:
        if account.endswith("canary"):
            return
        if self.left == 0:
            raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
        self.left -= 1


def keychain(provider: FakeKeychain | None = None) -> GuardedKeychain:
    return GuardedKeychain(provider or FakeKeychain(), instance="one")


def test_a_session_comes_back_as_it_was() -> None:
    custody = SessionCustody(keychain())
    assert custody.load_session() is None
    custody.store_session(access_token=hide("access"), refresh_token=hide("refresh"), meta=META)
    session = custody.load_session()
    assert session is not None
    assert (session.access_token, session.refresh_token) == (Secret("access"), Secret("refresh"))
    assert (session.expires_at, session.scope, session.issuer) == (
        2_000_000,
        "read",
        "https://issuer",
    )


def test_the_scope_that_was_granted_is_kept_and_a_wider_one_refused() -> None:
    asked = ["vault:read", "vault:write"]
    answer = {"access_token": "a", "token_type": "Bearer", "expires_in": 60, "scope": "vault:read"}
    granted = validate_token_response(answer)
    assert isinstance(granted, TokenResponse)
    assert check_granted_scope(granted.scope, asked).ok
    meta = build_session_meta(answer, now=0)
    assert isinstance(meta, SessionMeta)
    custody = SessionCustody(keychain())
    custody.store_session(access_token=granted.access_token, meta=meta)
    session = custody.load_session()
    assert session is not None
    assert session.scope == "vault:read"

    wider = validate_token_response(answer | {"scope": "vault:read vault:delete"})
    assert isinstance(wider, TokenResponse)
    assert check_granted_scope(wider.scope, asked).reason is Reason.SCOPE_EXCEEDED


def test_the_tokens_are_not_in_the_repr() -> None:
    custody = SessionCustody(keychain())
    custody.store_session(access_token=hide("access-1"), refresh_token=hide("refresh-1"), meta=META)
    shown = repr(custody.load_session())
    assert "access-1" not in shown
    assert "refresh-1" not in shown


def test_the_refresh_token_is_replaced_kept_or_removed() -> None:
    custody = SessionCustody(keychain())

    def after(refresh_token: object) -> Secret | None:
        custody.store_session(access_token=hide("a"), refresh_token=hide(refresh_token), meta=META)
        session = custody.load_session()
        assert session is not None
        return session.refresh_token

    assert after("one") == Secret("one")
    assert after(KEEP) == Secret("one")
    assert after("two") == Secret("two")
    assert after(None) is None
    assert after(KEEP) is None


def test_nothing_is_changed_before_everything_is_checked() -> None:
    provider = FakeKeychain()
    custody = SessionCustody(keychain(provider))
    custody.store_session(access_token=hide("a"), refresh_token=hide("r"), meta=META)
    before = dict(provider.items)
    too_long = SessionMeta(expires_at=1, scope="x" * 9000)
    for access, refresh, meta in (
        ("", "r", META),
        ("a b", "r", META),
        ("a", "", META),
        ("a", "r\r\nx: y", META),
        ("a", 5, META),
        ("a", "r", too_long),
    ):
        with pytest.raises(UsageError) as caught:
            custody.store_session(access_token=hide(access), refresh_token=hide(refresh), meta=meta)
        assert caught.value.reason is Reason.SECRET_INVALID
    assert provider.items == before


def test_a_write_that_is_cut_off_anywhere_loads_as_no_session() -> None:
    outcomes = []
    for left in itertools.count():
        provider = Interrupted({}, left=100)
        custody = SessionCustody(keychain(provider))
        custody.store_session(access_token=hide("old-a"), refresh_token=hide("old-r"), meta=META)
        provider.left = left
        try:
            custody.store_session(
                access_token=hide("new-a"), refresh_token=hide("new-r"), meta=META
            )
        except CompanionError:
            session = custody.load_session()
        else:
            break
        outcomes.append(session and (session.access_token, session.refresh_token))
    # Nothing written: the old session still stands. From then on: none.
    assert outcomes == [(Secret("old-a"), Secret("old-r")), None, None, None]


def test_after_a_failed_write_no_half_is_left() -> None:
    class RefusingMeta(FakeKeychain):
        def set(self, account: str, secret: str) -> None:
            if account.endswith("session_meta"):
                raise KeychainUnavailable(Reason.KEYCHAIN_REFUSED)
            super().set(account, secret)

    provider = RefusingMeta()
    with pytest.raises(CompanionError):
        SessionCustody(keychain(provider)).store_session(
            access_token=hide("a"), refresh_token=hide("r"), meta=META
        )
    assert provider.items == {}


@pytest.mark.parametrize("stubborn", ["access_token", "refresh_token", "session_meta"])
def test_clearing_goes_on_whatever_fails(stubborn: str) -> None:
    class Stubborn(FakeKeychain):
        def delete(self, account: str) -> None:
            if account.endswith(stubborn):
                raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
            super().delete(account)

    accounts = ("access_token", "refresh_token", "session_meta", "loopback_token")
    provider = Stubborn(items={f"companion/one/{account}": "x" for account in accounts})
    with pytest.raises(CompanionError) as caught:
        SessionCustody(keychain(provider)).clear_session()
    assert caught.value.reason is Reason.KEYCHAIN_LOCKED
    assert set(provider.items) == {f"companion/one/{stubborn}", "companion/one/loopback_token"}


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_any_stored_metadata_loads_or_is_none(text: str) -> None:
    items = {"companion/one/access_token": "a", "companion/one/session_meta": text}
    session = SessionCustody(keychain(FakeKeychain(items=items))).load_session()
    assert session is None or session.expires_at == json.loads(text)["expires_at"]


@pytest.mark.parametrize(
    "text", ["[" * 8000, '{"expires_at":NaN}', '{"expires_at":1e999}', '{"expires_at":true}']
)
def test_hostile_metadata_loads_as_none(text: str) -> None:
    items = {"companion/one/access_token": "a", "companion/one/session_meta": text}
    assert SessionCustody(keychain(FakeKeychain(items=items))).load_session() is None


@pytest.mark.parametrize("token", ["", "a b", "a\n", "é", "\x7f", "x" * 8193])
def test_a_corrupt_access_token_loads_as_none(token: str) -> None:
    items = {"companion/one/access_token": token, "companion/one/session_meta": META.to_json()}
    assert SessionCustody(keychain(FakeKeychain(items=items))).load_session() is None


def test_a_reader_never_sees_parts_of_two_sessions() -> None:
    custody = SessionCustody(keychain())
    custody.store_session(access_token=hide("a0"), refresh_token=hide("r0"), meta=META)
    mixed: list[object] = []

    def read() -> None:
        for _ in range(30):
            session = custody.load_session()
            tokens = session and (session.access_token, session.refresh_token)
            if not tokens or len({token.reveal()[1:] for token in tokens}) > 1:
                mixed.append(session)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        custody.store_session(
            access_token=hide(f"a{turn}"), refresh_token=hide(f"r{turn}"), meta=META
        )
    reader.join()
    assert mixed == []


@pytest.mark.parametrize(
    ("now", "refresh", "decision"),
    [
        (1_000_000, "r", RefreshDecision.VALID),
        (2_000_000, "r", RefreshDecision.REFRESH),
        (2_000_000, None, RefreshDecision.REAUTH),
        (900_000, "r", RefreshDecision.REFRESH),  # the clock went back: the age is unknown
        (900_000, None, RefreshDecision.REAUTH),
        (float("nan"), "r", RefreshDecision.REAUTH),
    ],
)
def test_decide(now: float, refresh: str | None, decision: RefreshDecision) -> None:
    custody = SessionCustody(keychain())
    assert custody.decide(now) is RefreshDecision.REAUTH
    custody.store_session(access_token=hide("a"), refresh_token=hide(refresh), meta=META)
    assert custody.decide(now) is decision
