from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.oauth import (
    AuthorizationCode,
    ErrorCode,
    ServerError,
    build_authorization_url,
    validate_authorization_response,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

ISSUER = "https://as.example"
REQUEST: dict[str, Any] = {
    "authorization_endpoint": "https://as.example/authorize",
    "client_id": "companion",
    "redirect_uri": "http://127.0.0.1:49321/callback",
    "scopes": ["vault:read", "vault:write"],
    "state": "state-1",
    "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
}
ANSWER = {"code": "c-1", "state": "s-1", "iss": ISSUER}

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(st.characters(codec=None)),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
)


def query_of(url: object) -> dict[str, str]:
    assert isinstance(url, str)
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    assert len(dict(pairs)) == len(pairs), "each parameter once"
    return dict(pairs)


def judge(params: object, state: object = "s-1", issuer: object = ISSUER) -> Any:
    return validate_authorization_response(params, expected_state=state, expected_issuer=issuer)


def test_the_request_carries_what_it_must_and_no_secret() -> None:
    url = build_authorization_url(**REQUEST, nonce="n-1")
    assert query_of(url) == {
        "response_type": "code",
        "client_id": "companion",
        "redirect_uri": "http://127.0.0.1:49321/callback",
        "scope": "vault:read vault:write",
        "state": "state-1",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
        "nonce": "n-1",
    }


@pytest.mark.parametrize("nonce", [None, "", 5, True, ["n"]])
def test_a_nonce_that_is_no_text_is_not_sent(nonce: object) -> None:
    assert "nonce" not in query_of(build_authorization_url(**REQUEST, nonce=nonce))


def test_the_endpoints_own_query_is_kept() -> None:
    endpoint = "https://as.example/authorize?tenant=a%20b&x="
    url = build_authorization_url(**REQUEST | {"authorization_endpoint": endpoint})
    assert isinstance(url, str)
    assert url.startswith(endpoint + "&")
    assert query_of(url)["tenant"] == "a b"


@pytest.mark.parametrize("name", ["state", "STATE", "client_id", "nonce", "client_secret", "iss"])
def test_the_endpoint_may_not_set_what_the_request_sets(name: str) -> None:
    endpoint = f"https://as.example/authorize?{name}=x"
    url = build_authorization_url(**REQUEST | {"authorization_endpoint": endpoint})
    assert url is refuse(Reason.MALFORMED_INPUT)


@pytest.mark.parametrize(
    "name",
    [
        *("nonce", "Nonce", "client_secret", "CLIENT_SECRET", "client_assertion", "request"),
        *("request_uri", "response_mode", "Redirect_Uri", "code_verifier", "code", "scope"),
        *("state", "code_challenge_method", "claims", "registration", "id_token_hint"),
    ],
)
def test_an_extra_parameter_cannot_carry_security(name: str) -> None:
    url = build_authorization_url(**REQUEST, nonce="n-1", extra_params={name: "evil"})
    assert query_of(url) == query_of(build_authorization_url(**REQUEST, nonce="n-1"))


def test_harmless_extra_parameters_are_sent() -> None:
    extra = {"prompt": "login", "login_hint": "é@x", "tenant": "", "a": 5, "": "b", "c": "\ud800"}
    endpoint = "https://as.example/authorize?own=1"
    url = build_authorization_url(
        **REQUEST | {"authorization_endpoint": endpoint}, extra_params=extra | {"own": "2"}
    )
    sent = query_of(url)
    assert {k: sent[k] for k in ("prompt", "login_hint", "tenant", "own")} == {
        "prompt": "login",
        "login_hint": "é@x",
        "tenant": "",
        "own": "1",
    }
    assert not {"a", "", "c"} & set(sent)


def test_an_extra_parameter_is_bounded_in_bytes() -> None:
    sent = [
        "hint" in query_of(build_authorization_url(**REQUEST, extra_params={"hint": value}))
        for value in ("a" * 8192, "a" * 8193, "é" * 4096, "é" * 4096 + "a")
    ]
    assert sent == [True, False, True, False]


@pytest.mark.parametrize(
    "change",
    [
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"code_challenge": "c" * 42},
        {"code_challenge": "c" * 43 + "\n"},
        {"code_challenge": "c" * 42 + "="},
        {"client_id": ""},
        {"client_id": "é"},
        {"state": ""},
        {"state": "a\nb"},
        {"state": "s" * 8193},
        {"scopes": []},
        {"scopes": "vault:read"},
        {"scopes": ["a b"]},
        {"scopes": ['a"']},
        {"scopes": ["a" * 5000, "b" * 5000]},
        {"nonce": "n\n"},
        {"authorization_endpoint": "http://as.example/authorize"},
    ],
)
def test_malformed_requests(change: dict[str, object]) -> None:
    assert build_authorization_url(**REQUEST | change) is refuse(Reason.MALFORMED_INPUT)


@pytest.mark.parametrize("missing", REQUEST)
def test_nothing_may_be_missing(missing: str) -> None:
    assert isinstance(build_authorization_url(**REQUEST | {missing: None}), Verdict)


def test_the_redirect_stays_on_loopback_whoever_is_named() -> None:
    url = build_authorization_url(
        **REQUEST | {"redirect_uri": "http://evil.example:5000/cb"},
        allowed_redirect_hosts=["evil.example"],
    )
    assert url is refuse(Reason.INVALID_REDIRECT_URI)


def test_a_right_answer_gives_the_code_and_hides_it() -> None:
    result = judge(ANSWER)
    assert isinstance(result, AuthorizationCode)
    assert result.code == Secret("c-1")
    assert "c-1" not in repr(result)


def test_whether_the_issuer_is_known_has_to_be_said() -> None:
    with pytest.raises(TypeError):
        validate_authorization_response(ANSWER, expected_state="s-1")  # type: ignore[call-arg]  # left out


@pytest.mark.parametrize("issuer", [None, "", 5, []])
@pytest.mark.parametrize("iss", [{}, {"iss": ISSUER}])
def test_without_a_known_issuer_any_or_none_is_fine(issuer: object, iss: dict[str, str]) -> None:
    answer = {"code": "c", "state": "s-1"} | iss
    assert isinstance(judge(answer, issuer=issuer), AuthorizationCode)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": None}, Reason.STATE_MISSING),
        ({"state": ""}, Reason.STATE_MISSING),
        ({"state": ["s-1"]}, Reason.STATE_MISSING),
        ({"state": "S-1"}, Reason.STATE_MISMATCH),
        ({"state": "s-1 ", "iss": "x", "error": "x", "code": ""}, Reason.STATE_MISMATCH),
        ({"iss": None}, Reason.ISSUER_MISMATCH),
        ({"iss": ""}, Reason.ISSUER_MISMATCH),
        ({"iss": ISSUER + "/"}, Reason.ISSUER_MISMATCH),
        ({"iss": [ISSUER], "error": "x", "code": ""}, Reason.ISSUER_MISMATCH),
        ({"error": "access_denied", "code": ""}, Reason.AUTHORIZATION_SERVER_ERROR),
        ({"error": None}, Reason.AUTHORIZATION_SERVER_ERROR),
        ({"code": None}, Reason.MISSING_CODE),
        ({"code": ""}, Reason.MISSING_CODE),
        ({"code": "c\n"}, Reason.MISSING_CODE),
        ({"code": "é"}, Reason.MISSING_CODE),
        ({"code": "c" * 8193}, Reason.MISSING_CODE),
    ],
)
def test_wrong_answers_in_order(change: dict[str, object], reason: Reason) -> None:
    result = judge(ANSWER | change)
    assert isinstance(result, Verdict)
    assert (result.ok, result.reason) == (False, reason)


@pytest.mark.parametrize("key", ["state", "iss", "code"])
def test_nothing_may_be_missing_from_the_answer(key: str) -> None:
    assert isinstance(judge({k: v for k, v in ANSWER.items() if k != key}), Verdict)


@pytest.mark.parametrize("state", [None, "", 5, ["s-1"]])
def test_a_used_up_state_accepts_nothing(state: object) -> None:
    assert judge(ANSWER, state=state) is refuse(Reason.STATE_MISSING)


@pytest.mark.parametrize("error", ErrorCode)
def test_known_error_codes_are_passed_on(error: ErrorCode) -> None:
    result = judge(ANSWER | {"error": error.value, "error_description": "text"})
    assert result == ServerError(
        ok=False, reason=Reason.AUTHORIZATION_SERVER_ERROR, error_code=error
    )


@pytest.mark.parametrize("error", ["<script>", "ACCESS_DENIED", "__proto__", "", 5, [], None])
def test_other_error_codes_are_not(error: object) -> None:
    assert judge(ANSWER | {"error": error}).error_code is None


@pytest.mark.parametrize("params", [None, [], "code=c", 5, [("code", "c")]])
def test_what_is_no_answer(params: object) -> None:
    assert judge(params) is refuse(Reason.MALFORMED_INPUT)


@given(
    st.one_of(
        ANYTHING,
        st.dictionaries(st.sampled_from(["code", "state", "iss", "error"]), ANYTHING),
    ),
    ANYTHING,
    ANYTHING,
)
def test_the_answer_is_judged_totally(params: object, state: object, issuer: object) -> None:
    result = judge(params, state, issuer)
    assert result == judge(params, state, issuer)
    if isinstance(result, AuthorizationCode):
        assert isinstance(params, dict)
        assert params["state"] == state
        assert "error" not in params
    else:
        assert isinstance(result.reason, Reason)
        assert not result.ok


@given(st.dictionaries(st.sampled_from([*REQUEST, "nonce", "extra_params"]), ANYTHING))
def test_the_request_is_built_totally(changes: dict[str, Any]) -> None:
    url = build_authorization_url(**REQUEST | changes)
    if isinstance(url, Verdict):
        assert url is refuse(url.reason)
    else:
        assert url.startswith("https://")
        assert url.isascii()
        assert query_of(url)["code_challenge_method"] == "S256"
