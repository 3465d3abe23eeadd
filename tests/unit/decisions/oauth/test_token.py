from __future__ import annotations

import base64
import json
import math
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secret_parts import hide

from companion_core.decisions.oauth import (
    ErrorCode,
    RefreshDecision,
    ServerError,
    TokenRequest,
    TokenResponse,
    build_refresh_request,
    build_token_request,
    check_granted_scope,
    check_id_token_nonce,
    decide_token_refresh,
    validate_token_response,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

EXCHANGE: dict[str, Any] = {
    "token_endpoint": "https://as.example/token",
    "client_id": "companion",
    "code": Secret("secret-code"),
    "code_verifier": Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
    "redirect_uri": "http://127.0.0.1:49321/callback",
}
REFRESH: dict[str, Any] = {
    "token_endpoint": "https://as.example/token",
    "client_id": "companion",
    "refresh_token": Secret("secret-refresh"),
}
RESPONSE: dict[str, Any] = {
    "access_token": "secret-access",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": "secret-refresh",
    "scope": "vault:read",
}
INVALID = refuse(Reason.INVALID_TOKEN_RESPONSE)
VALID, AGAIN, REAUTH = RefreshDecision.VALID, RefreshDecision.REFRESH, RefreshDecision.REAUTH

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None)),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
    st.sampled_from([10**400, -(10**400)]),
)


def id_token(claims: object) -> str:
    raw = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    body = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return f"eyJhbGciOiJFUzI1NiJ9.{body}.c2ln"


@pytest.mark.parametrize(
    ("request_", "grant", "secrets"),
    [
        (build_token_request(**EXCHANGE), "authorization_code", {"code", "code_verifier"}),
        (build_refresh_request(**REFRESH), "refresh_token", {"refresh_token"}),
    ],
)
def test_requests_are_forms_without_a_client_secret(
    request_: Any, grant: str, secrets: set[str]
) -> None:
    assert isinstance(request_, TokenRequest)
    assert request_.url == "https://as.example/token"
    assert request_.method == "POST"
    assert request_.headers["Content-Type"] == "application/x-www-form-urlencoded"
    sent = {name: hide(value) for name, value in parse_qsl(request_.body.decode())}
    assert sent == {name: hide(value) for name, value in request_.params.items()}
    assert {name for name, value in request_.params.items() if type(value) is Secret} == secrets
    assert request_.params["grant_type"] == grant
    assert "client_secret" not in request_.params
    assert "secret-" not in repr(request_)
    with pytest.raises(TypeError):
        request_.params["client_secret"] = "x"


@pytest.mark.parametrize("missing", EXCHANGE)
def test_an_exchange_needs_everything(missing: str) -> None:
    assert isinstance(build_token_request(**EXCHANGE | {missing: None}), Verdict)


@pytest.mark.parametrize("missing", REFRESH)
def test_a_refresh_needs_everything(missing: str) -> None:
    assert isinstance(build_refresh_request(**REFRESH | {missing: None}), Verdict)


@pytest.mark.parametrize(
    "change",
    [
        {"code": Secret("a\r\nb")},
        {"code": "plain"},
        {"code_verifier": Secret("a" * 42)},
        {"code_verifier": "a" * 43},
        {"client_id": "\n"},
    ],
)
def test_malformed_exchanges(change: dict[str, str]) -> None:
    assert build_token_request(**EXCHANGE | change) is refuse(Reason.MALFORMED_INPUT)


def test_the_redirect_of_an_exchange_is_loopback() -> None:
    result = build_token_request(**EXCHANGE | {"redirect_uri": "http://evil.example:1/cb"})
    assert result is refuse(Reason.INVALID_REDIRECT_URI)


def test_a_refresh_may_narrow_and_never_widen() -> None:
    narrow = build_refresh_request(**REFRESH, scopes=["a"], original_scopes=["a", "b"])
    assert isinstance(narrow, TokenRequest)
    assert narrow.params["scope"] == "a"
    wide = build_refresh_request(**REFRESH, scopes=["a", "admin"], original_scopes=["a"])
    assert wide is refuse(Reason.SCOPE_EXCEEDED)
    malformed = build_refresh_request(**REFRESH, scopes=["a"], original_scopes="a")
    assert malformed is refuse(Reason.SCOPE_EXCEEDED)
    assert build_refresh_request(**REFRESH, scopes=[]) is refuse(Reason.MALFORMED_INPUT)


def test_a_good_answer_gives_the_tokens_and_hides_them() -> None:
    result = validate_token_response(RESPONSE | {"id_token": "secret-id"})
    assert result == TokenResponse(
        access_token=Secret("secret-access"),
        refresh_token=Secret("secret-refresh"),
        expires_in=3600,
        scope="vault:read",
        id_token=Secret("secret-id"),
    )
    assert "secret-" not in repr(result)


@pytest.mark.parametrize("optional", ["refresh_token", "scope"])
def test_what_an_answer_may_lack(optional: str) -> None:
    answer = {key: value for key, value in RESPONSE.items() if key != optional}
    result = validate_token_response(answer)
    assert isinstance(result, TokenResponse)
    assert getattr(result, optional) is None


@pytest.mark.parametrize(
    "change",
    [
        {"token_type": "mac"},
        {"token_type": "bearer "},
        {"token_type": None},
        {"access_token": ""},
        {"access_token": "a b"},
        {"access_token": "a\r\nX: y"},
        {"access_token": "é"},
        {"access_token": "a" * 8193},
        {"access_token": b"a"},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": 1.5},
        {"expires_in": True},
        {"expires_in": "3600"},
        {"expires_in": math.nan},
        {"expires_in": math.inf},
        {"expires_in": 366 * 24 * 3600 + 1},
        {"expires_in": 10**400},
        {"refresh_token": None},
        {"refresh_token": "a\0"},
        {"scope": None},
        {"scope": 'a"b'},
        {"scope": ["a"]},
        {"id_token": 5},
        {"error": ""},
        {"error": 5},
        {"error": []},
    ],
)
def test_malformed_answers(change: dict[str, object]) -> None:
    result = validate_token_response(RESPONSE | change)
    assert isinstance(result, Verdict)
    assert (result.ok, result.reason) == (False, Reason.INVALID_TOKEN_RESPONSE)


@pytest.mark.parametrize("missing", ["access_token", "token_type", "expires_in"])
def test_what_an_answer_needs(missing: str) -> None:
    answer = {key: value for key, value in RESPONSE.items() if key != missing}
    assert validate_token_response(answer) is INVALID


def test_the_longest_life_is_accepted_and_a_whole_float_is_an_integer() -> None:
    for seconds in (1, 366 * 24 * 3600, 60.0):
        result = validate_token_response(RESPONSE | {"expires_in": seconds})
        assert isinstance(result, TokenResponse)
        assert type(result.expires_in) is int


def test_an_error_brings_its_code_and_no_text() -> None:
    result = validate_token_response({"error": "invalid_grant", "error_description": "a text"})
    assert result == ServerError(
        ok=False, reason=Reason.INVALID_TOKEN_RESPONSE, error_code=ErrorCode.INVALID_GRANT
    )
    other = validate_token_response({"error": "a text"})
    assert other == ServerError(ok=False, reason=Reason.INVALID_TOKEN_RESPONSE, error_code=None)


@pytest.mark.parametrize(
    ("granted", "asked", "ok"),
    [
        ("a b", ["a", "b", "c"], True),
        ("b a", ["a", "b"], True),
        ("", ["a"], True),
        (None, ["a"], True),
        ("a admin", ["a"], False),
        ("A", ["a"], False),
        ("a", [], False),
        ("a", "a", False),
        (None, None, False),
        (5, ["a"], False),
        ("a\tb", ["a", "b"], False),
    ],
)
def test_the_granted_scope_stays_within_the_asked(granted: Any, asked: Any, ok: bool) -> None:
    verdict = check_granted_scope(granted, asked)
    assert verdict.ok is ok
    assert verdict.reason is (Reason.OK if ok else Reason.SCOPE_EXCEEDED)


@pytest.mark.parametrize("subject", ["", "x", "xx", "xxx"])
def test_claims_of_every_length(subject: str) -> None:
    assert check_id_token_nonce(Secret(id_token({"nonce": "n-1", "sub": subject})), "n-1").ok


def test_the_nonce_of_an_id_token() -> None:
    token = id_token({"nonce": "n-1", "sub": "x"})
    assert check_id_token_nonce(Secret(token), "n-1").ok
    assert not check_id_token_nonce(token, "n-1").ok, "a plain text"
    assert check_id_token_nonce(Secret(token.ljust(32_768, "A")), "n-1").ok, "a long signature"
    assert not check_id_token_nonce(Secret(token.ljust(32_769, "A")), "n-1").ok


@pytest.mark.parametrize(
    ("token", "nonce"),
    [
        (id_token({"nonce": "n-2"}), "n-1"),
        (id_token({}), "n-1"),
        (id_token({"nonce": ""}), ""),
        (id_token({"nonce": None}), None),
        (id_token({"nonce": ["n-1"]}), "n-1"),
        (id_token(["nonce"]), "n-1"),
        (id_token(b'{"nonce": "n-2", "nonce": "n-1"}'), "n-1"),
        (id_token(b"[" * 20_000), "n-1"),
        (id_token(b"\xff"), "n-1"),
        ("n-1", "n-1"),
        ("a.b", "n-1"),
        ("a.A.c", "n-1"),
        (id_token({"nonce": "n-1"}) + ".x", "n-1"),
        (id_token({"nonce": "n-1", "x": "y" * 40_000}), "n-1"),
        (None, "n-1"),
        (5, "n-1"),
    ],
)
def test_any_other_id_token_is_refused(token: object, nonce: object) -> None:
    assert check_id_token_nonce(hide(token), nonce) is refuse(Reason.NONCE_MISMATCH)


@pytest.mark.parametrize(
    ("facts", "decision"),
    [
        ({"now": 0}, VALID),
        ({"now": 69_999}, VALID),
        ({"now": 70_000}, AGAIN),
        ({"now": 99_999, "skew_ms": 0}, VALID),
        ({"now": 100_000, "skew_ms": 0}, AGAIN),
        ({"now": 199_999, "refresh_expires_at": 200_000}, AGAIN),
        ({"now": 200_000, "refresh_expires_at": 200_000}, REAUTH),
        ({"now": 100_000, "has_refresh_token": False}, REAUTH),
        ({"now": 100_000, "has_refresh_token": None}, REAUTH),
        ({"now": 100_000, "has_refresh_token": 1}, REAUTH),
        ({"now": 0, "has_refresh_token": False}, VALID),
        ({"now": 69_999, "skew_ms": -1}, VALID),
        ({"now": 70_000, "skew_ms": math.inf}, AGAIN),
        ({"now": 70_000, "skew_ms": True}, AGAIN),
    ],
)
def test_when_to_refresh(facts: dict[str, Any], decision: RefreshDecision) -> None:
    assert decide_token_refresh(expires_at=100_000, **facts) is decision


@pytest.mark.parametrize("bad", [None, True, "5", [], math.nan, math.inf, 10**400])
def test_malformed_times_ask_the_person(bad: object) -> None:
    assert decide_token_refresh(expires_at=bad, now=0) is REAUTH
    assert decide_token_refresh(expires_at=100_000, now=bad) is REAUTH
    if bad is not None:
        again = decide_token_refresh(expires_at=0, now=1, refresh_expires_at=bad)
        assert again is REAUTH


@given(
    st.one_of(
        ANYTHING,
        st.dictionaries(st.sampled_from([*RESPONSE, "error", "id_token"]), ANYTHING),
        st.dictionaries(st.sampled_from([*RESPONSE, "error", "id_token"]), ANYTHING).map(
            lambda changes: RESPONSE | changes
        ),
    )
)
def test_answers_are_judged_totally(response: object) -> None:
    result = validate_token_response(response)
    assert result == validate_token_response(response)
    if isinstance(result, TokenResponse):
        assert result.access_token.reveal().isascii()
        assert result.access_token.reveal().isprintable()
        assert 0 < result.expires_in <= 366 * 24 * 3600
    else:
        assert result.reason is Reason.INVALID_TOKEN_RESPONSE


@given(st.tuples(*[ANYTHING] * 5))
def test_everything_else_is_total(values: tuple[Any, ...]) -> None:
    decision = decide_token_refresh(
        expires_at=values[0],
        now=values[1],
        skew_ms=values[2],
        refresh_expires_at=values[3],
        has_refresh_token=values[4],
    )
    assert isinstance(decision, RefreshDecision)
    assert isinstance(check_granted_scope(values[0], values[1]), Verdict)
    assert isinstance(check_id_token_nonce(hide(values[0]), values[1]), Verdict)
    exchange = dict(zip(EXCHANGE, map(hide, values), strict=True))
    assert isinstance(build_token_request(**exchange), Verdict | TokenRequest)
    refresh = dict(zip([*REFRESH, "scopes", "original_scopes"], map(hide, values), strict=True))
    assert isinstance(build_refresh_request(**refresh), Verdict | TokenRequest)
