"""Sign-in with a browser and on another device, and every bad answer on the way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from sign_in_parts import (
    SCOPES,
    Person,
    Service,
    answers_rightly,
    asked,
    callback,
    nothing_listens,
    session_of,
    settings_of,
)

from companion_core.authority.sign_in import (
    Client,
    Exchange,
    sign_in_elsewhere,
    sign_in_with_browser,
)
from companion_core.authority.sign_in import listener as listener_module
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.integration

NEVER = threading.Event()


@pytest.fixture
def service(authority) -> Iterator[Service]:
    with Service(authority.server_context()) as service:
        yield service


class Attempt:
    """One sign-in as `companion login` carries it out, with its keychain."""

    def __init__(self, service: Service, context: ssl.SSLContext, folder: Path) -> None:
        self.service = service
        self.context = context
        self.keychain = FakeKeychain()
        self.session = session_of(service.issuer, context, folder, self.keychain)

    def client(self, cancelled: threading.Event = NEVER, **options: Any) -> Client:
        times = {"idle_seconds": 5.0, "total_seconds": 5.0}
        clock = {"clock": options.pop("clock")} if "clock" in options else {}
        exchange = Exchange(LiveEgress(), self.context, cancelled=cancelled, **times | options)
        return Client(settings_of(self.service.issuer), exchange, **clock)

    def run(self, person: Person, *, seconds: float = 10, **options: Any) -> None:
        async def attempt() -> None:
            client = self.client(**options)
            granted = await sign_in_with_browser(client, show=None, egress=person, seconds=seconds)
            self.session.store(granted, NEVER)

        try:
            asyncio.run(attempt(), debug=True)
        finally:
            person.finish()
            gc.collect()  # a task whose error nobody read would say so now

    def refused(self, person: Person | None = None, **options: Any) -> Reason:
        """Return why it ended; nothing is stored, and nothing listens."""
        person = person or Person(self.service)
        with pytest.raises(CompanionError) as caught:
            self.run(person, **options)
        assert stored(self.keychain) == {}
        for url in person.opened:
            assert nothing_listens(port_of(url))
        assert self.session.state(NEVER).signed_in is False
        return caught.value.reason


def stored(keychain: FakeKeychain) -> dict[str, str]:
    return keychain.items


def port_of(url: str) -> int:
    return int(urlsplit(url).query.partition("127.0.0.1%3A")[2].partition("%2F")[0])


@pytest.fixture
def attempt(service, context, tmp_path) -> Attempt:
    return Attempt(service, context, tmp_path)


def test_a_person_signs_in_with_the_browser(attempt, service) -> None:
    person = Person(service)
    attempt.run(person)
    assert attempt.session.token(NEVER).reveal() == "access-token-number-1"
    assert nothing_listens(port_of(person.opened[0]))
    [(status, page)] = person.replies
    assert status == 200
    assert "the-code" not in page
    state = attempt.session.state(NEVER)
    assert (state.signed_in, state.refreshable, state.scope) == (True, True, " ".join(SCOPES))
    [(path, form)] = service.forms
    assert path == "/token"
    assert "client_secret" not in form
    assert form["redirect_uri"] == f"http://127.0.0.1:{port_of(person.opened[0])}/callback"


# --- the listener ---------------------------------------------------------------------------


def then_rightly(stray: Callable[[int, dict[str, str]], Any]) -> Callable[..., Any]:
    """First the stray, then the browser's own answer; both of their statuses."""

    def browse(port: int, right: dict[str, str]) -> tuple[int, int]:
        return stray(port, right)[0], answers_rightly(port, right)[0]

    return browse


def hangs(port: int, _right: dict[str, str]) -> tuple[int, str]:
    """Connects, and says nothing for as long as the listener lives."""
    silent = socket.create_connection(("127.0.0.1", port))
    threading.Timer(3, silent.close).start()
    return 0, ""


def raw(*lines: str) -> Callable[[int, dict[str, str]], tuple[int, str]]:
    def send(port: int, right: dict[str, str]) -> tuple[int, str]:
        query = urlencode(right)
        text = "\r\n".join(lines).format(port=port, query=query) + "\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(text.encode("latin-1"))
            with contextlib.suppress(ConnectionResetError):
                answer = plain.recv(1000)
                return (int(answer.split()[1]) if answer else 0), ""
        return 0, ""

    return send


STRAYS: dict[str, tuple[int, Callable[[int, dict[str, str]], Any]]] = {
    "favicon": (404, lambda port, _: asked(port, "/favicon.ico")),
    "the root": (404, lambda port, _: asked(port, "/")),
    "a longer path": (404, lambda port, right: asked(port, f"/callback/?{urlencode(right)}")),
    "no query": (400, lambda port, _: asked(port, "/callback")),
    "no state": (400, lambda port, right: callback(port, code="x", iss=right["iss"])),
    "HEAD": (405, lambda port, right: asked(port, f"/callback?{urlencode(right)}", "HEAD")),
    "POST": (405, lambda port, right: asked(port, f"/callback?{urlencode(right)}", "POST")),
    "OPTIONS": (405, lambda port, right: asked(port, f"/callback?{urlencode(right)}", "OPTIONS")),
    "silent": (0, hangs),
    "no HTTP": (400, raw("hello")),
    "absolute form": (400, raw("GET http://x/callback?{query} HTTP/1.1", "Host: 127.0.0.1:{port}")),
    "two hosts": (
        400,
        raw("GET /callback?{query} HTTP/1.1", "Host: 127.0.0.1:{port}", "Host: 127.0.0.1:{port}"),
    ),
    "a body": (
        400,
        raw("GET /callback?{query} HTTP/1.1", "Host: 127.0.0.1:{port}", "Content-Length: 5"),
    ),
    "an endless head": (
        400,
        raw("GET /callback HTTP/1.1", "Host: 127.0.0.1:{port}", f"X: {'x' * 40_000}"),
    ),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_does_not_consume_the_attempt(attempt, service, stray) -> None:
    status, send = STRAYS[stray]
    person = Person(service, then_rightly(send))
    attempt.run(person)
    [(first, second)] = person.replies
    assert (first, second) in {(status, 200), (0, 200)}
    assert first == status or stray == "an endless head"


def test_another_state_is_refused_and_the_attempt_stays_open(attempt, service) -> None:
    wrong = then_rightly(lambda port, right: callback(port, **right | {"state": "x" * 64}))
    person = Person(service, wrong)
    attempt.run(person)
    assert person.replies == [(400, 200)]


def test_a_flood_of_wrong_states_ends_with_its_reason(attempt, service) -> None:
    def flood(port: int, right: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            for _ in range(listener_module.MAX_WRONG_ANSWERS + 1):
                callback(port, **right | {"state": "x" * 64})

    assert attempt.refused(Person(service, flood)) is Reason.STATE_MISMATCH


def test_two_codes_are_refused(attempt, service) -> None:
    def twice(port: int, right: dict[str, str]) -> tuple[int, str]:
        return asked(port, f"/callback?code=other&{urlencode(right)}")

    person = Person(service, then_rightly(twice))
    attempt.run(person)
    assert person.replies == [(400, 200)]
    other = Attempt(service, attempt.context, attempt.session._folder.parent)
    assert other.refused(Person(service, twice), seconds=1) is Reason.MALFORMED_INPUT


@pytest.mark.parametrize("host", ["evil.example", "localhost:{port}", "127.0.0.1", "127.0.0.1:1"])
def test_another_host_is_refused(attempt, service, host) -> None:
    def rebound(port: int, right: dict[str, str]) -> tuple[int, str]:
        named = host.format(port=port)
        return asked(port, f"/callback?{urlencode(right)}", Host=named)

    person = Person(service, then_rightly(rebound))
    attempt.run(person)
    assert person.replies == [(403, 200)]


def test_a_second_answer_with_the_same_state_is_refused(attempt, service) -> None:
    replies: list[Any] = []

    def replay(port: int, right: dict[str, str]) -> None:
        # A connection from before is still served for a moment; a new one is not.
        early = socket.create_connection(("127.0.0.1", port), timeout=10)
        replies.append(answers_rightly(port, right)[0])
        head = f"GET /callback?{urlencode(right)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        with early, contextlib.suppress(OSError):
            early.sendall(head.encode())
            replies.append(early.recv(100).split()[1:2])
        with contextlib.suppress(OSError):
            replies.append(callback(port, **right)[0])

    attempt.run(Person(service, replay))
    assert replies[0] == 200
    assert not {200, (b"200",)} & {tuple(r) if isinstance(r, list) else r for r in replies[1:]}
    assert len(service.forms) == 1


def secrets_alive() -> set[str]:
    gc.collect()
    return {value.reveal() for value in gc.get_objects() if type(value) is Secret}


@pytest.mark.parametrize("fails", [False, True])
def test_an_attempt_leaves_no_secret_behind(attempt, service, fails) -> None:
    """Its code and verifier are held by nothing afterwards, and its state opens nothing."""
    sent: list[dict[str, str]] = []

    def remember(port: int, right: dict[str, str]) -> None:
        sent.append(dict(right))
        callback(port, **right)

    if fails:
        service.token = {"scope": "more"}
        assert attempt.refused(Person(service, remember)) is Reason.SCOPE_EXCEEDED
        service.token = {}
    else:
        attempt.run(Person(service, remember))
    gone = {service.forms[0][1]["code_verifier"], "the-code"}
    assert not gone & secrets_alive()
    attempt.keychain.items.clear()
    old = Person(service, lambda port, _right: callback(port, **sent[0]))
    assert attempt.refused(old, seconds=1) is Reason.STATE_MISMATCH


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": "https://127.0.0.1:1"}, Reason.ISSUER_MISMATCH),
        ({"iss": None}, Reason.ISSUER_MISMATCH),
        ({"code": None}, Reason.MISSING_CODE),
        ({"code": ""}, Reason.MISSING_CODE),
        ({"error": "access_denied"}, Reason.AUTHORIZATION_SERVER_ERROR),
        ({"error": "access_denied", "iss": None}, Reason.ISSUER_MISMATCH),
        ({"error": "access_denied", "iss": "https://evil.example"}, Reason.ISSUER_MISMATCH),
        ({"code": "expired"}, Reason.INVALID_TOKEN_RESPONSE),
    ],
)
def test_a_wrong_answer_of_the_browser_ends_with_its_reason(
    attempt, service, change, reason
) -> None:
    def answer(port: int, right: dict[str, str]) -> None:
        if change.get("code") == "expired":
            service.challenge = "another"
        fields = {**right, **change}
        callback(port, **{name: text for name, text in fields.items() if text is not None})

    assert attempt.refused(Person(service, answer)) is reason


def test_nobody_who_comes_back_ends_in_time(attempt, service) -> None:
    assert attempt.refused(Person(service, lambda *_: None), seconds=0.3) is Reason.SIGN_IN_TIMEOUT


def test_a_browser_that_cannot_be_started_ends_with_its_reason(attempt, service) -> None:
    assert attempt.refused(Person(service, opens=False)) is Reason.BROWSER_UNAVAILABLE


def test_an_answer_while_the_browser_is_still_being_opened_is_no_error_elsewhere(
    attempt, service, capsys
) -> None:
    class Slow(Person):
        def open_browser(self, url: str) -> bool:
            super().open_browser(url)
            time.sleep(0.5)
            return False

    slow = Slow(service, lambda port, right: callback(port, **right | {"iss": "x"}))
    assert attempt.refused(slow) is Reason.BROWSER_UNAVAILABLE
    assert "never retrieved" not in capsys.readouterr().err


def test_a_port_that_cannot_be_had_leaves_nothing_behind(attempt, service, monkeypatch) -> None:
    def taken() -> socket.socket:
        raise OSError

    # The port is the system's choice: no argument makes it fail.
    monkeypatch.setattr(listener_module, "_bind", taken)
    threads = threading.active_count()
    assert attempt.refused() is Reason.LISTENER_NOT_BOUND
    assert threading.active_count() <= threads + 3  # those that wait for a further call


# --- the service ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"issuer": "https://127.0.0.1:1"}, Reason.ISSUER_MISMATCH),
        ({"issuer": None}, Reason.ISSUER_MISMATCH),
        ({"token_endpoint": "https://evil.example/token"}, Reason.ISSUER_MISMATCH),
        ({"authorization_endpoint": "https://evil.example/a"}, Reason.ISSUER_MISMATCH),
        ({"jwks_uri": "http://127.0.0.1/keys"}, Reason.ISSUER_MISMATCH),
        ({"code_challenge_methods_supported": ["plain"]}, Reason.SIGN_IN_UNSUPPORTED),
        ({"authorization_response_iss_parameter_supported": None}, Reason.SIGN_IN_UNSUPPORTED),
        ({"token_endpoint": None}, Reason.SIGN_IN_UNSUPPORTED),
    ],
)
def test_a_service_that_is_another_or_lacks_something_is_refused_before_the_browser(
    attempt, service, metadata, reason
) -> None:
    service.metadata = metadata
    person = Person(service)
    assert attempt.refused(person) is reason
    assert person.opened == []


TOKEN_ANSWERS: dict[str, tuple[tuple[int, str, bytes], Reason]] = {
    "a redirect": ((307, "text/html", b""), Reason.SIGN_IN_UNAVAILABLE),
    "10 MB": ((200, "application/json", b'"' + b"x" * 10_000_000), Reason.INVALID_TOKEN_RESPONSE),
    "another type": ((200, "text/html", b"{}"), Reason.INVALID_TOKEN_RESPONSE),
    "no JSON": ((200, "application/json", b"{"), Reason.INVALID_TOKEN_RESPONSE),
    "deep JSON": ((200, "application/json", b"[" * 60_000), Reason.INVALID_TOKEN_RESPONSE),
    "a list": ((200, "application/json", b"[]"), Reason.INVALID_TOKEN_RESPONSE),
    "a refusal": (
        (400, "application/json", b'{"error":"invalid_grant"}'),
        Reason.INVALID_TOKEN_RESPONSE,
    ),
    "a fault": ((500, "text/plain", b""), Reason.SIGN_IN_UNAVAILABLE),
    "tokens in a refusal": (
        (400, "application/json", b'{"access_token":"a","token_type":"Bearer","expires_in":9}'),
        Reason.INVALID_TOKEN_RESPONSE,
    ),
    "two tokens": (
        (200, "application/json", b'{"access_token":"a","access_token":"b"}'),
        Reason.INVALID_TOKEN_RESPONSE,
    ),
}


@pytest.mark.parametrize("kind", TOKEN_ANSWERS)
def test_a_token_answer_that_is_none_is_refused(attempt, service, kind) -> None:
    planted, reason = TOKEN_ANSWERS[kind]
    service.answer_form_with = lambda _path: planted
    assert attempt.refused() is reason
    assert [path for path, _ in service.forms] == ["/token"]


@pytest.mark.parametrize(
    "change",
    [
        {"expires_in": "3600"},
        {"expires_in": -1},
        {"token_type": "mac"},
        {"access_token": "a b"},
        {"refresh_token": 7},
    ],
)
def test_a_token_answer_of_another_form_is_refused(attempt, service, change) -> None:
    service.token = change
    assert attempt.refused() is Reason.INVALID_TOKEN_RESPONSE


def test_what_the_service_refuses_is_told_by_its_code(attempt, service) -> None:
    service.answer_form_with = lambda _: (400, "application/json", b'{"error":"invalid_grant"}')
    with pytest.raises(CompanionError) as caught:
        attempt.run(Person(service))
    assert "invalid_grant" in caught.value.detail


def test_more_than_was_asked_for_is_refused(attempt, service) -> None:
    service.token = {"scope": "openid offline_access admin"}
    assert attempt.refused() is Reason.SCOPE_EXCEEDED


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"nonce": "another"}, Reason.NONCE_MISMATCH),
        ({"nonce": None}, Reason.NONCE_MISMATCH),
        ({"aud": "another"}, Reason.ID_TOKEN_INVALID),
        ({"iss": "https://evil.example"}, Reason.ID_TOKEN_INVALID),
        ({"exp": 1, "iat": 0}, Reason.CLOCK_DIFFERS),
    ],
)
def test_an_identity_token_that_is_not_of_this_attempt_is_refused(
    attempt, service, claims, reason
) -> None:
    service.claims = claims
    assert attempt.refused() is reason


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_is_told(attempt, days) -> None:
    assert attempt.refused(clock=lambda: time.time() + days * 86400) is Reason.CLOCK_DIFFERS


def test_a_slow_service_ends_in_time(attempt, service) -> None:
    service.stalled = "/token"
    began = time.monotonic()
    assert attempt.refused(idle_seconds=0.5, total_seconds=1.0) is Reason.SIGN_IN_UNAVAILABLE
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("step", ["discovery", "tokens", "keys"])
def test_a_service_that_goes_down_ends_with_its_reason(attempt, service, step) -> None:
    person = Person(service)
    if step == "discovery":
        service.stop()
    elif step == "tokens":
        person.browse = lambda port, right: (service.stop(), callback(port, **right))[1]
    else:
        service.metadata = {"jwks_uri": service.url("/none")}
    expected = Reason.ID_TOKEN_INVALID if step == "keys" else Reason.SIGN_IN_UNAVAILABLE
    assert attempt.refused(person) is expected


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", None])
def test_an_interrupt_at_each_step_ends_at_once(attempt, service, path) -> None:
    """At the service's metadata, at its tokens, and while the browser is waited for."""
    service.stalled = path
    cancelled = threading.Event()
    person = Person(service, answers_rightly if path else lambda *_: None)

    async def interrupted() -> None:
        async def whole() -> None:
            client = await asyncio.to_thread(attempt.client, cancelled, total_seconds=30)
            granted = await sign_in_with_browser(client, show=None, egress=person)
            attempt.session.store(granted, NEVER)

        task = asyncio.ensure_future(whole())
        await asyncio.sleep(0.7)
        cancelled.set()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or isinstance(task.exception(), CompanionError)

    began = time.monotonic()
    asyncio.run(interrupted())
    person.finish()
    assert time.monotonic() - began < 8
    assert stored(attempt.keychain) == {}
    assert all(nothing_listens(port_of(url)) for url in person.opened)


# --- another device -------------------------------------------------------------------------


def on_another_device(attempt: Attempt, waited: list[float], **options: Any) -> list[Any]:
    shown: list[Any] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    granted = sign_in_elsewhere(
        attempt.client(**options), show=shown.append, cancelled=NEVER, wait=wait
    )
    attempt.session.store(granted, NEVER)
    return shown


def test_a_person_signs_in_on_another_device(attempt, service) -> None:
    service.pending = ["authorization_pending", "slow_down"]
    waited: list[float] = []
    [code] = on_another_device(attempt, waited)
    assert code.user_code == "WDJB-MJHT"
    assert code.verification_uri == service.url("/enter")
    assert waited == [1, 1, 6]
    assert attempt.session.token(NEVER).reveal() == "access-token-number-1"


@pytest.mark.parametrize(
    ("pending", "reason"),
    [
        ("access_denied", Reason.AUTHORIZATION_SERVER_ERROR),
        ("expired_token", Reason.SIGN_IN_TIMEOUT),
        ("never heard of", Reason.AUTHORIZATION_SERVER_ERROR),
    ],
)
def test_a_device_that_is_refused_ends_with_its_reason(attempt, service, pending, reason) -> None:
    service.pending = [pending]
    with pytest.raises(CompanionError) as caught:
        on_another_device(attempt, [])
    assert caught.value.reason is reason
    assert stored(attempt.keychain) == {}


def test_a_person_who_never_comes_ends_when_the_code_does(attempt, service) -> None:
    service.pending = ["authorization_pending"] * 1000
    service.answer_form_with = lambda path: (
        (200, "application/json", json.dumps(device_code(service, expires_in=3)).encode())
        if path == "/device"
        else None
    )
    with pytest.raises(CompanionError) as caught:
        on_another_device(attempt, [])
    assert caught.value.reason is Reason.SIGN_IN_TIMEOUT


def device_code(service: Service, **changes: Any) -> dict[str, Any]:
    return {
        "device_code": "d" * 43,
        "user_code": "WDJB-MJHT",
        "verification_uri": service.url("/enter"),
        "expires_in": 600,
        "interval": 1,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verification_uri": "https://evil.example/enter"}, Reason.ISSUER_MISMATCH),
        ({"user_code": "\x1b[2J"}, Reason.INVALID_TOKEN_RESPONSE),
        ({"expires_in": "600"}, Reason.INVALID_TOKEN_RESPONSE),
        ({"error": "invalid_client"}, Reason.AUTHORIZATION_SERVER_ERROR),
    ],
)
def test_a_person_is_sent_nowhere_else(attempt, service, changes, reason) -> None:
    body = json.dumps(device_code(service, **changes)).encode()
    service.answer_form_with = lambda _path: (200, "application/json", body)
    with pytest.raises(CompanionError) as caught:
        on_another_device(attempt, [])
    assert caught.value.reason is reason


def test_a_service_without_devices_says_so(attempt, service) -> None:
    service.metadata = {"device_authorization_endpoint": None}
    with pytest.raises(CompanionError) as caught:
        on_another_device(attempt, [])
    assert caught.value.reason is Reason.SIGN_IN_UNSUPPORTED


def test_a_page_cannot_hold_every_connection(attempt, service) -> None:
    """Silent connections above the bound; the browser's own answer still comes through."""

    def crowd(port: int, right: dict[str, str]) -> int:
        with contextlib.ExitStack() as held:
            for _ in range(listener_module.MAX_CONNECTIONS + 8):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            return answers_rightly(port, right)[0]

    person = Person(service, crowd)
    attempt.run(person)
    assert person.replies == [200]
