"""Custody: metadata holds known fields only, what is torn is no session, tokens are strong."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.custody import (
    CLEARING_ORDER,
    Account,
    SessionMeta,
    build_session_meta,
    decide_session,
    is_loopback_token,
    is_storable,
    is_token,
    parse_session_meta,
    parse_stored_meta,
)
from companion_core.decisions.guard import MINIMUM_TOKEN_LENGTH
from companion_core.decisions.oauth.token import RefreshDecision
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

META = SessionMeta(
    expires_at=2_000_000,
    refresh_expires_at=3_000_000,
    scope="read",
    token_type="bearer",
    issuer="https://issuer",
    stored_at=1_000_000,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(
    st.sampled_from([*asdict(META), "expires_in", "refresh_token", "access_token"]), JSON
)


def reason_of(answer: object) -> Reason:
    assert isinstance(answer, Verdict)
    assert not answer.ok
    return answer.reason


# --- secrets ------------------------------------------------------------------------------


def test_clearing_ends_the_session_and_spares_the_loopback_token() -> None:
    assert set(CLEARING_ORDER) == set(Account) - {Account.LOOPBACK_TOKEN, Account.PERSONAL_KEY}
    assert CLEARING_ORDER[0] is Account.REFRESH_TOKEN


@pytest.mark.parametrize("value", [None, 5, b"x" * 43, ["x" * 43], "", "\ud800"])
def test_what_is_no_text_is_stored_nowhere(value: object) -> None:
    assert not is_storable(value)
    assert not is_token(value)
    assert not is_loopback_token(value)


@pytest.mark.parametrize("sign", [" ", "\n", "\r", "\t", "\x7f", "\x1f", "é", "\N{NO-BREAK SPACE}"])
def test_a_token_is_visible_ascii(sign: str) -> None:
    assert is_token("!" + "~" * 8191)
    assert is_storable("x" * 43 + sign)
    assert not is_token("x" * 43 + sign)
    assert not is_token(sign + "x" * 43)
    assert not is_loopback_token("x" * 43 + sign)


def test_a_loopback_token_is_one_that_the_guard_takes() -> None:
    for length in (1, 42, 43, 44, 8192, 8193):
        assert is_loopback_token("x" * length) == (MINIMUM_TOKEN_LENGTH <= length <= 8192)
    assert math.ceil(256 / 6) == MINIMUM_TOKEN_LENGTH


# --- the metadata -------------------------------------------------------------------------


def test_metadata_is_what_the_answer_and_the_clock_say() -> None:
    response = {"expires_in": 60, "scope": "a b", "token_type": "bearer", "refresh_token": "r"}
    meta = build_session_meta(response, now=1000, refresh_ttl_ms=5, issuer="https://i")
    assert meta == SessionMeta(
        expires_at=61_000,
        refresh_expires_at=1005,
        scope="a b",
        token_type="bearer",
        issuer="https://i",
        stored_at=1000,
    )
    bare = build_session_meta({"expires_in": 1}, now=0)
    assert bare == SessionMeta(expires_at=1000, stored_at=0)
    assert bare.token_type == "Bearer"


@pytest.mark.parametrize("ttl", [0, -1, True, math.nan, math.inf, "5", None])
def test_a_lifetime_that_is_none_is_no_ceiling(ttl: object) -> None:
    meta = build_session_meta({"expires_in": 1, "refresh_token": "r"}, now=0, refresh_ttl_ms=ttl)
    assert isinstance(meta, SessionMeta)
    assert meta.refresh_expires_at is None


@pytest.mark.parametrize("refresh_token", [None, "", 5])
def test_without_a_refresh_token_there_is_no_ceiling_for_it(refresh_token: object) -> None:
    response = {"expires_in": 1, "refresh_token": refresh_token}
    meta = build_session_meta(response, now=0, refresh_ttl_ms=5)
    assert isinstance(meta, SessionMeta)
    assert meta.refresh_expires_at is None


def test_metadata_holds_known_fields_only() -> None:
    response = {"access_token": "SECRET", "refresh_token": "SECRET", "expires_in": 60, "id": "x"}
    meta = build_session_meta(response, now=0, refresh_ttl_ms=5)
    assert isinstance(meta, SessionMeta)
    stored = meta.to_json()
    assert "SECRET" not in stored
    assert list(json.loads(stored)) == list(asdict(META))
    assert " " not in stored


def test_a_number_that_json_has_not_is_never_stored() -> None:
    with pytest.raises(ValueError):
        SessionMeta(expires_at=math.nan).to_json()


@pytest.mark.parametrize("expires_in", [None, 10**400, 1e308, True, 1.5, 0, -1, "60"])
def test_a_lifetime_is_a_whole_usable_number(expires_in: object) -> None:
    meta = build_session_meta({"expires_in": expires_in}, now=0)
    assert reason_of(meta) is Reason.MALFORMED_INPUT


@pytest.mark.parametrize("value", [None, 5, "{}", [], {}, {"expires_at": math.nan}])
def test_metadata_without_an_end_is_malformed(value: object) -> None:
    assert reason_of(parse_session_meta(value)) is Reason.MALFORMED_INPUT
    assert reason_of(build_session_meta(value, now=0)) is Reason.MALFORMED_INPUT
    assert reason_of(build_session_meta({"expires_in": 1}, now=None)) is Reason.MALFORMED_INPUT


def test_fields_of_another_type_count_as_absent() -> None:
    wrong = {name: [value] for name, value in asdict(META).items()} | {"expires_at": 1}
    assert parse_session_meta(wrong) == SessionMeta(expires_at=1)


@given(JSON | FIELDS)
def test_metadata_is_parsed_or_refused(value: Any) -> None:
    meta = parse_session_meta(value)
    assert parse_session_meta(value) == meta
    if isinstance(meta, Verdict):
        assert meta.reason is Reason.MALFORMED_INPUT
    else:
        assert parse_stored_meta(meta.to_json()) in {meta, None}  # None: too long to be stored


@given(JSON | FIELDS, JSON, JSON, JSON)
def test_building_is_total(response: Any, now: Any, ttl: Any, issuer: Any) -> None:
    meta = build_session_meta(response, now=now, refresh_ttl_ms=ttl, issuer=issuer)
    if isinstance(meta, SessionMeta):
        assert meta.stored_at == now
        assert meta.expires_at > now


# --- what is stored -----------------------------------------------------------------------


def test_what_was_stored_comes_back() -> None:
    assert parse_stored_meta(META.to_json()) == META


def test_torn_metadata_is_none() -> None:
    whole = META.to_json()
    for end in range(len(whole)):
        assert parse_stored_meta(whole[:end]) is None


@pytest.mark.parametrize(
    "stored",
    [
        None,
        5,
        b"{}",
        "[]",
        "[" * 8000,
        '{"expires_at":NaN}',
        '{"expires_at":1e999}',
        '{"expires_at":true}',
        '{"expires_at":1,"scope":"' + "x" * 8192 + '"}',
    ],
)
def test_corrupt_metadata_is_none(stored: object) -> None:
    assert parse_stored_meta(stored) is None


@given(st.text() | JSON.map(json.dumps) | JSON)
def test_any_stored_text_loads_or_is_none(stored: Any) -> None:
    meta = parse_stored_meta(stored)
    assert meta is None or meta.expires_at == json.loads(stored)["expires_at"]


# --- what is done with a session -----------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "refreshable", "decision"),
    [
        (1_000_000, True, RefreshDecision.VALID),
        (1_969_999, True, RefreshDecision.VALID),
        (1_970_000, True, RefreshDecision.REFRESH),
        (2_999_999, True, RefreshDecision.REFRESH),
        (3_000_000, True, RefreshDecision.REAUTH),
        (970_000, True, RefreshDecision.VALID),  # within the skew of the clock
        (969_999, True, RefreshDecision.REFRESH),  # the clock went back: the age is unknown
        (969_999, False, RefreshDecision.REAUTH),
        (2_000_000, False, RefreshDecision.REAUTH),
        (2_000_000, "yes", RefreshDecision.REAUTH),
        (math.nan, True, RefreshDecision.REAUTH),
        (None, True, RefreshDecision.REAUTH),
    ],
)
def test_decide(now: object, refreshable: object, decision: RefreshDecision) -> None:
    assert decide_session(META, has_refresh_token=refreshable, now=now) is decision


def test_no_session_means_signing_in() -> None:
    decision = decide_session(None, has_refresh_token=True, now=1_000_000)
    assert decision is RefreshDecision.REAUTH


def test_a_session_of_unknown_age_counts_from_its_end() -> None:
    meta = SessionMeta(expires_at=2_000_000)
    assert decide_session(meta, has_refresh_token=True, now=0) is RefreshDecision.VALID


@given(JSON, JSON, JSON, JSON, JSON)
def test_deciding_is_total_and_doubt_is_never_valid(
    expires: Any, ceiling: Any, stored: Any, refreshable: Any, now: Any
) -> None:
    meta: Any = SessionMeta(expires_at=expires, refresh_expires_at=ceiling, stored_at=stored)
    decision = decide_session(meta, has_refresh_token=refreshable, now=now)
    if decision is RefreshDecision.VALID:
        numbers = [n for n in (expires, now, stored) if n is not None]
        assert all(type(n) in {int, float} and math.isfinite(n) for n in numbers)
        assert all(a <= b for a, b in itertools.pairwise([now, expires]))
    if refreshable is not True:
        assert decision is not RefreshDecision.REFRESH
