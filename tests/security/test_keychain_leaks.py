"""The attacker reads logs, tracebacks and crash reports (I-15): no secret is in them."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest

from companion_core.authority.custody import SessionCustody
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken
from companion_core.decisions.custody import Account, SessionMeta
from companion_core.errors import CompanionError
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.security

SECRET = "s3cr3t-" * 8


def everything_said(error: BaseException) -> str:
    """Return the text of an exception, of its attributes and of the exceptions chained to it."""
    said, seen, queue = [], set(), [error]
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        said += [str(each), repr(each), repr(each.args), repr(vars(each))]
        queue += [chained for chained in (each.__cause__, each.__context__) if chained is not None]
    return "\n".join([*said, *traceback.format_exception(error)])


class Wrapping(FakeKeychain):
    """Raises an exception whose cause, arguments and attributes all carry the secret."""

    def set(self, account: str, secret: str) -> None:
        error = RuntimeError(secret)
        error.add_note(secret)
        error.secret = secret
        raise error from KeyError(secret)


@pytest.mark.parametrize(
    "provider", [FakeKeychain(leaking=True), Wrapping(), FakeKeychain(changing=True)]
)
def test_an_error_of_a_store_is_not_passed_on(
    provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keychain = GuardedKeychain(provider, instance="one")
    keychain._proved = True  # so that the secret itself, not a canary, reaches the store
    calls = (
        lambda: keychain.set(Account.ACCESS_TOKEN, SECRET),
        lambda: SessionCustody(keychain).store_session(
            access_token=Secret(SECRET),
            refresh_token=Secret(SECRET),
            meta=SessionMeta(expires_at=1),
        ),
        lambda: LoopbackToken(keychain).store(Secret(SECRET)),
    )
    for call in calls:
        with pytest.raises(CompanionError) as caught:
            call()
        assert SECRET not in everything_said(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("tail", ["\n", " ", "é", "\ud800", "x" * 8192])
def test_a_refused_secret_is_not_in_its_refusal(tail: str) -> None:
    keychain = GuardedKeychain(FakeKeychain(), instance="one")
    custody, loopback = SessionCustody(keychain), LoopbackToken(keychain)
    meta = SessionMeta(expires_at=1)
    for call in (
        lambda: custody.store_session(access_token=Secret(SECRET + tail), meta=meta),
        lambda: custody.store_session(
            access_token=Secret("a"), refresh_token=Secret(SECRET + tail), meta=meta
        ),
        lambda: loopback.store(Secret(SECRET + tail)),
    ):
        with pytest.raises(CompanionError) as caught:
            call()
        assert SECRET not in everything_said(caught.value)


def test_the_search_finds_a_secret_that_is_there() -> None:
    with pytest.raises(RuntimeError) as caught:
        Wrapping().set("account", SECRET)
    assert SECRET in everything_said(caught.value)


def test_no_object_shows_what_it_holds() -> None:
    provider = FakeKeychain()
    keychain = GuardedKeychain(provider, instance="one")
    keychain.set(Account.LOOPBACK_TOKEN, SECRET)
    for each in (provider, keychain, SessionCustody(keychain), LoopbackToken(keychain)):
        assert SECRET not in repr(each)
