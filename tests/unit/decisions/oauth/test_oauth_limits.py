"""Signing in holds at its edges: the last value that passes, and the first that does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from companion_core.decisions.oauth import (
    Endpoint,
    RefreshDecision,
    admit_endpoint,
    admit_redirect_uri,
    build_authorization_url,
    build_refresh_request,
    check_granted_scope,
    check_id_token_nonce,
    decide_token_refresh,
    parse_redirect_query,
    validate_token_response,
    verifier_from,
)
from companion_core.decisions.oauth.grammar import is_scope_list
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit


def test_no_character_of_a_verifier_is_lost() -> None:
    # The last sextet of these 33 bytes is 23, which is an "X".
    assert verifier_from(bytes(32) + b"\x17") == Secret("A" * 43 + "X")


@pytest.mark.parametrize(("bytes_", "ok"), [(31, False), (32, True), (96, True), (97, False)])
def test_the_entropy_of_a_verifier(bytes_: int, ok: bool) -> None:
    assert isinstance(verifier_from(bytes(bytes_)), Secret) is ok


def test_a_scope_list_is_as_long_as_the_text_it_becomes() -> None:
    assert is_scope_list(["a" * 4095, "b" * 4096])
    assert not is_scope_list(["a" * 4096, "b" * 4096])


@pytest.mark.parametrize(
    ("port", "ok"), [(79, True), (80, False), (81, True), (65535, True), (65536, False)]
)
def test_the_ports_of_a_redirect(port: int, ok: bool) -> None:
    assert isinstance(admit_redirect_uri(f"http://127.0.0.1:{port}/"), Verdict) is not ok


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTPS://As.Example", ("https://as.example", "/", "", "https://as.example/")),
        ("https://a:443/x", ("https://a", "/x", "", "https://a/x")),
        ("https://a:444/x?", ("https://a:444", "/x", "", "https://a:444/x")),
        ("https://a:65535/x?q=1", ("https://a:65535", "/x", "q=1", "https://a:65535/x?q=1")),
    ],
)
def test_the_parts_of_an_endpoint(url: str, parts: tuple[str, ...]) -> None:
    proof = admit_endpoint(url)
    assert isinstance(proof, Endpoint)
    assert (proof.origin, proof.path, proof.query, proof.url) == parts
    assert proof.base == proof.origin + proof.path


@pytest.mark.parametrize("url", ["https://a:65536/", "https://a:0/"])
def test_no_such_port(url: str) -> None:
    assert isinstance(admit_endpoint(url), Verdict)


AUTHORIZATION: dict[str, Any] = {
    "client_id": "companion",
    "redirect_uri": "http://127.0.0.1:9/",
    "scopes": ["a"],
    "state": "s",
    "code_challenge": "a" * 43,
}


@pytest.mark.parametrize("query", ["client_id=", "x=%ff", "%ff=x", "STATE=1", "a=1&nonce"])
def test_an_endpoints_own_query_sets_nothing_reserved(query: str) -> None:
    endpoint = f"https://as.example/?{query}"
    answer = build_authorization_url(authorization_endpoint=endpoint, **AUTHORIZATION)
    assert isinstance(answer, Verdict)


def test_an_endpoints_own_query_is_not_set_again() -> None:
    answer = build_authorization_url(
        authorization_endpoint="https://as.example/?blank=&x=1",
        extra_params={"blank": "2", "x": "2", "y": "2"},
        **AUTHORIZATION,
    )
    assert isinstance(answer, str)
    assert answer.startswith("https://as.example/?blank=&x=1&response_type=code&")
    assert answer.endswith("&y=2")


RESERVED = (
    "response_type response_mode client_id redirect_uri scope state code_challenge "
    "code_challenge_method code_verifier code nonce iss client_secret client_assertion "
    "client_assertion_type assertion request request_uri registration claims "
    "authorization_details grant_type username password device_code dpop_jkt error token "
    "token_type access_token refresh_token id_token id_token_hint"
)


@pytest.mark.parametrize("name", RESERVED.split())
def test_no_one_else_sets_a_parameter_that_carries_security(name: str) -> None:
    own = f"https://as.example/?{name.title()}=x"
    assert isinstance(build_authorization_url(authorization_endpoint=own, **AUTHORIZATION), Verdict)
    plain = build_authorization_url(
        authorization_endpoint="https://as.example/", **AUTHORIZATION, extra_params={}
    )
    assert plain == build_authorization_url(
        authorization_endpoint="https://as.example/",
        **AUTHORIZATION,
        extra_params={name: "x", name.upper(): "x"},
    )


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": ""},
        {"refresh_token": None},
        {"refresh_token": "r"},
        {"scopes": []},
        {"scopes": "a"},
    ],
)
def test_a_malformed_refresh_is_named_as_such(change: dict[str, Any]) -> None:
    sound: dict[str, Any] = {
        "token_endpoint": "https://as.example/token",
        "client_id": "c",
        "refresh_token": Secret("r"),
    }
    refused = build_refresh_request(**(sound | change))
    assert isinstance(refused, Verdict)
    assert refused.reason is Reason.MALFORMED_INPUT


@pytest.mark.parametrize(("count", "ok"), [(32, True), (33, False)])
def test_the_parameters_of_an_answer_are_few(count: int, ok: bool) -> None:
    query = "&".join(f"p{number}=" for number in range(count))
    assert isinstance(parse_redirect_query(query), Mapping) is ok


@pytest.mark.parametrize(("characters", "ok"), [(8192, True), (8193, False)])
def test_the_length_of_an_answer(characters: int, ok: bool) -> None:
    assert isinstance(parse_redirect_query("a=".ljust(characters, "b")), Mapping) is ok


@pytest.mark.parametrize(
    ("seconds", "ok"), [(0, False), (1, True), (366 * 86400, True), (366 * 86400 + 1, False)]
)
def test_the_life_of_a_token(seconds: int, ok: bool) -> None:
    answer = {"token_type": "bearer", "access_token": "a", "expires_in": seconds}
    assert isinstance(validate_token_response(answer), Verdict) is not ok


@pytest.mark.parametrize(
    ("granted", "within"),
    [("a", True), (" a  b ", True), ("", True), ("a c", False), ("ab", False)],
)
def test_a_granted_scope_is_a_list_with_spaces(granted: str, within: bool) -> None:
    assert check_granted_scope(granted, ["a", "b"]).ok is within


@pytest.mark.parametrize(("characters", "ok"), [(32_768, True), (32_769, False)])
def test_the_length_of_an_id_token(characters: int, ok: bool) -> None:
    token = "a.eyJub25jZSI6Im4ifQ.".ljust(characters, "s")
    assert check_id_token_nonce(Secret(token), "n").ok is ok


@pytest.mark.parametrize(
    ("now", "decision"),
    [(69_999, RefreshDecision.VALID), (70_000, RefreshDecision.REFRESH)],
)
def test_a_token_is_refreshed_thirty_seconds_early(now: int, decision: RefreshDecision) -> None:
    assert decide_token_refresh(expires_at=100_000, now=now) is decision
