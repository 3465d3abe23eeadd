from __future__ import annotations

from typing import Any

import pytest
from secret_parts import hide

from companion_core.decisions.oauth import (
    DeviceCode,
    Pending,
    TokenRequest,
    TokenResponse,
    build_device_poll,
    build_device_request,
    build_revocation_request,
    parse_device_code,
    read_device_answer,
)
from companion_core.decisions.oauth.way import has_browser
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

ISSUER = "https://login.example"
ANSWER = {
    "device_code": "d" * 43,
    "user_code": "WDJB-MJHT",
    "verification_uri": f"{ISSUER}/device",
    "verification_uri_complete": f"{ISSUER}/device?user_code=WDJB-MJHT",
    "expires_in": 600,
}


def reason(answer: Any, issuer: Any = ISSUER) -> Reason:
    verdict = parse_device_code(answer, issuer)
    assert isinstance(verdict, Verdict)
    return verdict.reason


def test_a_code_for_another_device_is_read() -> None:
    code = parse_device_code(ANSWER, ISSUER)
    assert isinstance(code, DeviceCode)
    assert (code.user_code, code.interval, code.expires_in) == ("WDJB-MJHT", 5, 600)
    assert "d" * 43 not in repr(code)


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": None},
        {"device_code": ""},
        {"device_code": "a\nb"},
        {"user_code": None},
        {"user_code": ""},
        {"user_code": "A" * 33},
        {"user_code": "ABC\x1b[2J"},
        {"user_code": "A--B"},
        {"expires_in": None},
        {"expires_in": "600"},
        {"expires_in": 0},
        {"expires_in": True},
        {"interval": -1},
        {"interval": "5"},
    ],
)
def test_a_code_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    assert reason(ANSWER | changes) is Reason.INVALID_TOKEN_RESPONSE


@pytest.mark.parametrize("place", ["https://evil.example/x", "http://login.example/x", "", None])
def test_a_person_is_sent_to_the_issuer_alone(place: object) -> None:
    assert reason(ANSWER | {"verification_uri": place}) is Reason.ISSUER_MISMATCH


def test_what_is_no_code_is_refused() -> None:
    assert reason(None) is Reason.INVALID_TOKEN_RESPONSE
    assert reason(ANSWER, None) is Reason.INVALID_TOKEN_RESPONSE
    assert reason({"error": "invalid_client"}) is Reason.AUTHORIZATION_SERVER_ERROR


def test_the_pace_has_bounds() -> None:
    for given, kept in ((0, 1), (7, 7), (10_000, 60)):
        code = parse_device_code(ANSWER | {"interval": given, "expires_in": 10**9}, ISSUER)
        assert isinstance(code, DeviceCode)
        assert (code.interval, code.expires_in) == (kept, 1800)


def test_an_answer_is_tokens_or_patience_or_a_refusal() -> None:
    tokens = {"access_token": "a", "token_type": "Bearer", "expires_in": 60}
    assert isinstance(read_device_answer(tokens), TokenResponse)
    assert read_device_answer({"error": "authorization_pending"}) is Pending.WAIT
    assert read_device_answer({"error": "slow_down"}) is Pending.SLOW_DOWN
    for document, expected in (
        ({"error": "expired_token"}, Reason.SIGN_IN_TIMEOUT),
        ({"error": "access_denied"}, Reason.AUTHORIZATION_SERVER_ERROR),
        ({"error": ["slow_down"]}, Reason.AUTHORIZATION_SERVER_ERROR),
        ({}, Reason.INVALID_TOKEN_RESPONSE),
        (None, Reason.INVALID_TOKEN_RESPONSE),
    ):
        answer = read_device_answer(document)
        assert isinstance(answer, Verdict)
        assert answer.reason is expected


def test_requests_go_to_https_with_what_is_due() -> None:
    asked = build_device_request(endpoint=f"{ISSUER}/device", client_id="c", scopes=["openid"])
    assert isinstance(asked, TokenRequest)
    assert dict(asked.params) == {"client_id": "c", "scope": "openid"}
    poll = build_device_poll(
        token_endpoint=f"{ISSUER}/token", client_id="c", device_code=hide("the-code")
    )
    assert isinstance(poll, TokenRequest)
    assert b"device_code=the-code" in poll.body
    assert "the-code" not in repr(poll)
    ended = build_revocation_request(
        endpoint=f"{ISSUER}/revoke", client_id="c", token=hide("the-token")
    )
    assert isinstance(ended, TokenRequest)
    assert ended.body == b"token=the-token&client_id=c"
    for refused in (
        build_device_request(endpoint="http://x/", client_id="c", scopes=["openid"]),
        build_device_request(endpoint=f"{ISSUER}/d", client_id="", scopes=["openid"]),
        build_device_request(endpoint=f"{ISSUER}/d", client_id="c", scopes=[]),
        build_device_poll(token_endpoint="x", client_id="c", device_code=hide("d")),
        build_device_poll(token_endpoint=f"{ISSUER}/t", client_id="c", device_code="plain"),
        build_revocation_request(endpoint="x", client_id="c", token=hide("t")),
        build_revocation_request(endpoint=f"{ISSUER}/r", client_id="c", token=hide("")),
    ):
        assert isinstance(refused, Verdict)
        assert refused.reason is Reason.MALFORMED_INPUT


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":10", "SSH_CONNECTION": "a b c d"}, False),
        ("darwin", {}, True),
        ("darwin", {"SSH_TTY": "/dev/ttys001"}, False),
        ("win32", {}, True),
        ("win32", {"SSH_CLIENT": "a b c"}, False),
        (None, {"DISPLAY": ":0"}, False),
        ("linux", None, False),
    ],
)
def test_a_browser_is_used_where_the_person_sees_it(
    platform: object, environment: object, expected: bool
) -> None:
    assert has_browser(platform, environment) is expected
