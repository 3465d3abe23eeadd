"""The sign-in session among threads, processes, clocks that are wrong, and deaths at any write."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sign_in_parts import SCOPES, Service, session_of

from companion_core.authority.sign_in import AccountSession
from companion_core.decisions.oauth import TokenResponse
from companion_core.errors import CompanionError, Reason
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.integration

NEVER = threading.Event()


@pytest.fixture
def service(authority) -> Iterator[Service]:
    with Service(authority.server_context()) as service:
        yield service


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Opened:
    """One keychain and one folder, opened as often as programs use them."""

    def __init__(self, service: Service, context, folder: Path) -> None:
        self.service = service
        self.context = context
        self.folder = folder
        self.keychain = FakeKeychain()
        self.wall, self.recency = Clock(), Clock()

    def session(self) -> AccountSession:
        return session_of(
            self.service.issuer,
            self.context,
            self.folder,
            self.keychain,
            wall=self.wall,
            recency=self.recency,
        )

    def sign_in(self, session: AccountSession | None = None, **changes) -> AccountSession:
        session = session or self.session()
        granted = {
            "access_token": Secret("first-access"),
            "refresh_token": Secret("first-refresh"),
            "expires_in": 3600,
            "scope": " ".join(SCOPES),
        }
        session.store(TokenResponse(**granted | changes), NEVER)
        return session

    def pass_time(self, seconds: float) -> None:
        self.wall.now += seconds
        self.recency.now += seconds


@pytest.fixture
def opened(service, context, tmp_path) -> Opened:
    return Opened(service, context, tmp_path)


def refusal(session: AccountSession, **options) -> Reason:
    with pytest.raises(CompanionError) as caught:
        session.token(NEVER, **options)
    return caught.value.reason


def refreshes(service: Service) -> int:
    return sum(form.get("grant_type") == "refresh_token" for _, form in service.forms)


def test_nobody_is_signed_in_at_first(opened) -> None:
    assert refusal(opened.session()) is Reason.SIGN_IN_REQUIRED
    assert not opened.session().state(NEVER).signed_in


def test_the_token_is_used_until_it_is_nearly_over_and_then_refreshed(opened, service) -> None:
    session = opened.sign_in()
    opened.pass_time(3569)
    assert session.token(NEVER).reveal() == "first-access"
    opened.pass_time(2)
    assert asyncio.run(session.access_token()).reveal() == "access-token-number-1"
    assert service.forms[-1][1]["refresh_token"] == "first-refresh"
    opened.pass_time(3600)
    assert session.token(NEVER).reveal() == "access-token-number-2"
    assert service.forms[-1][1]["refresh_token"] == "refresh-token-number-1"


def test_a_refresh_token_that_is_not_rotated_is_kept(opened, service) -> None:
    session = opened.sign_in()
    service.token = {"refresh_token": None}
    opened.pass_time(3600)
    session.token(NEVER)
    service.revoked.clear()
    opened.pass_time(3600)
    session.token(NEVER)
    assert [form["refresh_token"] for _, form in service.forms] == ["first-refresh"] * 2


def test_many_threads_refresh_once(opened, service) -> None:
    session = opened.sign_in()
    others = [opened.session() for _ in range(4)]
    opened.pass_time(3600)
    with ThreadPoolExecutor(10) as threads:
        tokens = list(
            threads.map(lambda n: [session, *others][n % 5].token(NEVER), range(20), timeout=60)
        )
    assert {token.reveal() for token in tokens} == {"access-token-number-1"}
    assert refreshes(service) == 1


PROGRAM = """
import json, sys, threading
from pathlib import Path
sys.path.insert(0, {support!r})
from sign_in_parts import session_of
from companion_core.egress.tls_context import build_tls_context
from companion_core.testing import FakeKeychain

class FileKeychain(FakeKeychain):
    place = Path({place!r})
    def get(self, account):
        self.items = json.loads(self.place.read_text())
        return super().get(account)
    def set(self, account, secret):
        self.items = json.loads(self.place.read_text())
        super().set(account, secret)
        self.place.write_text(json.dumps(self.items))
    def delete(self, account):
        self.items = json.loads(self.place.read_text())
        super().delete(account)
        self.place.write_text(json.dumps(self.items))

session = session_of({issuer!r}, build_tls_context({ca!r}), Path({folder!r}), FileKeychain())
sys.stdin.readline()
print(session.token(threading.Event()).reveal())
"""


def test_several_processes_refresh_once(opened, service, authority, tmp_path) -> None:
    """Each has its own memory; the keychain and the lock are all that they share."""
    opened.wall.now = 1_000.0  # over long ago, for programs by the right clock
    opened.sign_in()
    place = tmp_path / "keychain.json"
    place.write_text(json.dumps(opened.keychain.items))
    support = str(Path(__file__).parents[1] / "support")
    program = PROGRAM.format(
        support=support,
        place=str(place),
        issuer=service.issuer,
        ca=str(authority.ca_file),
        folder=str(tmp_path),
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    told = {child.communicate(timeout=60)[0].strip() for child in children}
    assert told == {"access-token-number-1"}
    assert refreshes(service) == 1


def test_a_refresh_token_that_is_no_longer_accepted_ends_the_session(opened, service) -> None:
    session = opened.sign_in()
    service.revoked.add("first-refresh")
    opened.pass_time(3600)
    assert refusal(session) is Reason.SIGN_IN_REQUIRED
    assert opened.keychain.items == {}
    assert refusal(session) is Reason.SIGN_IN_REQUIRED
    assert refreshes(service) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, "text/plain", b""), Reason.SIGN_IN_UNAVAILABLE),
        ((400, "application/json", b'{"error":"invalid_client"}'), Reason.INVALID_TOKEN_RESPONSE),
        ((200, "application/json", b"{}"), Reason.INVALID_TOKEN_RESPONSE),
    ],
)
def test_another_trouble_leaves_the_session(opened, service, answer, reason) -> None:
    session = opened.sign_in()
    opened.pass_time(3600)
    service.answer_form_with = lambda _path: answer
    assert refusal(session) is reason
    service.answer_form_with = lambda _path: None
    assert session.token(NEVER).reveal() == "access-token-number-1"


def test_a_service_without_a_network_leaves_the_session(opened, service) -> None:
    session = opened.sign_in()
    service.stop()
    assert session.token(NEVER).reveal() == "first-access"
    opened.pass_time(3600)
    assert refusal(session) is Reason.SIGN_IN_UNAVAILABLE
    assert session.state(NEVER).signed_in


def test_a_refresh_that_grants_more_is_refused_and_the_session_stays(opened, service) -> None:
    session = opened.sign_in(scope="openid")
    opened.pass_time(3600)
    assert refusal(session) is Reason.SCOPE_EXCEEDED
    assert session.state(NEVER).scope == "openid"


def test_a_session_without_a_refresh_token_ends_with_its_token(opened) -> None:
    session = opened.sign_in(refresh_token=None)
    assert session.token(NEVER).reveal() == "first-access"
    opened.pass_time(3600)
    assert refusal(session) is Reason.SIGN_IN_REQUIRED


def test_a_token_that_a_host_rejected_is_replaced_once(opened, service) -> None:
    session = opened.sign_in()
    first = session.token(NEVER)
    second = session.token(NEVER, rejected=first)
    assert second.reveal() == "access-token-number-1"
    # Another program that was rejected with the first one takes what is there now.
    assert opened.session().token(NEVER, rejected=first) == second
    assert refreshes(service) == 1


@pytest.mark.parametrize("step", [-86_400, -3_000, 86_400])
def test_a_clock_that_was_set_does_not_keep_a_token_alive(opened, step) -> None:
    session = opened.sign_in()
    opened.pass_time(3000)
    opened.wall.now += step
    opened.pass_time(700)  # over, by a clock that never steps
    assert session.token(NEVER).reveal() == "access-token-number-1"


def test_a_clock_that_was_set_back_is_noticed_by_another_program(opened) -> None:
    opened.sign_in()
    opened.wall.now -= 86_400
    assert opened.session().token(NEVER).reveal() == "access-token-number-1"


def test_the_session_of_another_issuer_is_not_this_one(opened, service, authority) -> None:
    opened.sign_in()
    with Service(authority.server_context()) as other:
        opened.service = other
        assert refusal(opened.session()) is Reason.SIGN_IN_REQUIRED


class Recorded(FakeKeychain):
    """Remembers what was stored after each write: what a death at that moment leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[dict[str, str]] = []

    def set(self, account: str, secret: str) -> None:
        super().set(account, secret)
        self.moments.append(dict(self.items))

    def delete(self, account: str) -> None:
        super().delete(account)
        self.moments.append(dict(self.items))


def whole(session: AccountSession) -> tuple[str, str | None, float] | None:
    loaded = session._custody.load_session()
    if loaded is None:
        return None
    refresh = None if loaded.refresh_token is None else loaded.refresh_token.reveal()
    return loaded.access_token.reveal(), refresh, loaded.expires_at


@pytest.mark.parametrize("change", ["sign in again", "refresh", "log out"])
def test_a_death_between_any_two_writes_leaves_the_right_session_or_none(
    opened, service, change
) -> None:
    opened.keychain = keychain = Recorded()
    session = opened.sign_in()
    before = whole(session)
    opened.pass_time(3600)
    keychain.moments.clear()
    if change == "sign in again":
        opened.sign_in(
            session, access_token=Secret("next-access"), refresh_token=Secret("next-refresh")
        )
    elif change == "refresh":
        session.token(NEVER)
    else:
        session.end(NEVER)
    after = whole(session)
    assert before != after
    allowed = {before, after, None}
    if change == "log out":  # what is left of it dies with the access token
        assert before is not None
        allowed.add((before[0], None, before[2]))
    seen = set()
    for moment in keychain.moments:
        opened.keychain = FakeKeychain(items=dict(moment))
        seen.add(whole(opened.session()))
    assert len(keychain.moments) >= 3
    assert seen <= allowed


def test_a_logout_removes_the_tokens_before_the_service_is_asked(opened, service) -> None:
    session = opened.sign_in()
    assert session.end(NEVER)
    assert service.revoked == {"first-access", "first-refresh"}
    assert opened.keychain.items == {}


@pytest.mark.parametrize("trouble", ["down", "refuses", "stalls", "has no revocation"])
def test_a_logout_removes_the_tokens_whatever_the_service_says(opened, service, trouble) -> None:
    session = opened.sign_in()
    ended = threading.Event()
    if trouble == "down":
        service.stop()
    elif trouble == "refuses":
        service.answer_form_with = lambda _path: (503, "text/plain", b"")
    elif trouble == "stalls":
        service.stalled = "/revoke"
        threading.Timer(0.5, ended.set).start()
    else:
        service.metadata = {"revocation_endpoint": None}
    assert session.end(ended) is False
    assert opened.keychain.items == {}


def test_a_keychain_that_is_locked_says_so(opened) -> None:
    session = opened.sign_in()
    opened.keychain.locked = True
    assert refusal(session) is Reason.KEYCHAIN_LOCKED


def test_waiting_for_another_program_ends_when_it_is_cancelled(opened, service) -> None:
    session = opened.sign_in()
    opened.pass_time(3600)
    service.stalled = "/token"
    first = threading.Event()
    blocked = threading.Thread(target=lambda: refusal_quietly(session, first), daemon=True)
    blocked.start()
    while not service.forms:
        pass
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    with pytest.raises(CompanionError) as caught:
        opened.session().token(cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    first.set()
    blocked.join(10)
    assert not blocked.is_alive()


def refusal_quietly(session: AccountSession, cancelled: threading.Event) -> None:
    with pytest.raises(CompanionError):
        session.token(cancelled)
