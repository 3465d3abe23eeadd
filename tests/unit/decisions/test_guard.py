"""The guard: its order is the table, every step refuses, and strangers lock nobody out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secret_parts import hide

from companion_core.decisions.guard import (
    GUARD_ORDER,
    HEALTH_PATH,
    RateBudgets,
    bearer_token,
    counts_toward_rate,
    fold_headers,
    guard_policy,
    loopback_hosts,
    presented_token,
    tokens_equal,
    verify_request,
)
from companion_core.decisions.rate import LONGEST_WINDOW_STAMPS, RateWindow, restore_rate_window
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

TOKEN = "a" * 43
HOST = "127.0.0.1:4000"
ROUTES = {"/v1/models": "GET", "/v1/chat/completions": "POST", HEALTH_PATH: "GET"}
POLICY = guard_policy(hosts=(HOST, "localhost:4000"), routes=ROUTES, token=Secret(TOKEN))


def fresh(owner: int = 1000, strangers: int = 1000) -> RateBudgets:
    return RateBudgets(RateWindow(60.0, owner), RateWindow(60.0, strangers))


def ask(budgets: RateBudgets | None = None, /, **change: Any) -> Reason:
    request: dict[str, Any] = {
        "method": "GET",
        "path": "/v1/models",
        "headers": {"host": HOST},
        "token": TOKEN,
        "policy": POLICY,
        "now": 100.0,
    } | change
    return verify_request(
        request["method"],
        request["path"],
        request["headers"],
        request["token"],
        request["policy"],
        budgets or fresh(),
        request["now"],
    ).reason


# One way to fail each step, in the table's order.
FAILURES: dict[str, dict[str, Any]] = {
    "structure": {"now": math.nan},
    "method": {"method": "DELETE"},
    "path": {"path": "/props"},
    "host": {"host": "evil.example"},
    "origin": {"origin": "https://evil.example"},
    "rate": {},
    "token": {"token": "wrong"},
}


def fail_at(*steps: str) -> Reason:
    """Fail several steps at once."""
    headers: dict[str, object] = {"host": HOST}
    change: dict[str, Any] = {}
    for step in steps:
        for name, value in FAILURES[step].items():
            (headers if name in {"host", "origin"} else change)[name] = value
    budgets = fresh()
    if "rate" in steps:
        full = RateWindow(60.0, 1, [99.0])
        budgets = RateBudgets(full, full)
    return ask(budgets, headers=headers, **change)


def test_each_step_can_fail_alone_with_a_reason_of_its_own() -> None:
    assert [step.name for step in GUARD_ORDER] == list(FAILURES)
    for step in GUARD_ORDER:
        assert fail_at(step.name) in step.reasons
        assert fail_at(step.name) is not Reason.OK
    assert ask() is Reason.OK


def test_the_first_failing_step_of_the_table_is_the_answer() -> None:
    for first, second in itertools.combinations([step.name for step in GUARD_ORDER], 2):
        assert fail_at(first, second) is fail_at(first), (first, second)


def test_a_path_is_tied_to_its_method() -> None:
    assert ask(method="POST") is Reason.METHOD_NOT_ALLOWED
    assert ask(path="/v1/models/") is Reason.PATH_NOT_ALLOWED
    assert ask(path=None) is Reason.PATH_NOT_ALLOWED
    assert ask(path=["/v1/models"]) is Reason.PATH_NOT_ALLOWED


def test_nothing_listed_admits_nothing() -> None:
    empty = guard_policy(hosts=(), routes=ROUTES, token=Secret(TOKEN))
    assert ask(policy=empty) is Reason.HOST_NOT_ALLOWED
    routeless = guard_policy(hosts=(HOST,), routes={}, token=Secret(TOKEN))
    assert ask(policy=routeless) is Reason.PATH_NOT_ALLOWED
    for token in (None, "", "a" * 42, 5, "\ud800" * 43):
        policy = guard_policy(hosts=(HOST,), routes=ROUTES, token=hide(token))
        assert ask(policy=policy, token=token) in {Reason.INVALID_TOKEN, Reason.MISSING_TOKEN}
    assert ask(RateBudgets(None, None)) is Reason.RATE_STATE_UNAVAILABLE


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"sec-fetch-mode": "cors"}, Reason.OK),
        ({"sec-fetch-mode": "no-cors"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"sec-fetch-mode": "cors", "origin": f"http://{HOST}"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, Reason.OK),
        ({"sec-fetch-site": "none"}, Reason.OK),
        ({"sec-fetch-site": "same-site"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"sec-fetch-user": "?1"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"origin": f"http://{HOST}"}, Reason.OK),
        ({"origin": "http://localhost:4000"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"origin": "null"}, Reason.CROSS_SITE_FORBIDDEN),
        ({"origin": ""}, Reason.CROSS_SITE_FORBIDDEN),
    ],
)
def test_web_pages_are_told_from_programs(headers: dict[str, str], reason: Reason) -> None:
    assert ask(headers={"host": HOST} | headers) is reason


def test_a_listed_host_is_meant_as_written() -> None:
    for entry in (f" {HOST}", f"{HOST}\t", "127.0.0.1:0400", "evil.example:4000"):
        policy = guard_policy(hosts=(entry,), routes=ROUTES, token=Secret(TOKEN))
        assert ask(policy=policy) is Reason.HOST_NOT_ALLOWED
        assert ask(policy=policy, headers={"host": entry}) is Reason.HOST_NOT_ALLOWED
    assert ask(headers={"host": " LOCALHOST:4000\t"}) is Reason.OK


@pytest.mark.parametrize("now", [10**400, -(10**400), math.inf, -math.inf, True, None, "100"])
def test_a_time_that_is_none_is_refused(now: Any) -> None:
    assert ask(now=now) is Reason.MALFORMED_REQUEST
    assert RateWindow().take(now).reason is Reason.RATE_STATE_UNAVAILABLE


def test_strangers_and_the_owner_have_budgets_of_their_own() -> None:
    budgets = fresh(owner=2, strangers=3)
    stranger = [ask(budgets, token="wrong") for _ in range(5)]
    assert stranger == [Reason.INVALID_TOKEN] * 3 + [Reason.RATE_LIMITED] * 2
    assert ask(budgets, token="") is Reason.RATE_LIMITED
    assert [ask(budgets) for _ in range(3)] == [Reason.OK, Reason.OK, Reason.RATE_LIMITED]
    assert ask(budgets, now=161.0) is Reason.OK


def test_only_the_owners_health_checks_are_not_counted() -> None:
    budgets = fresh(owner=1, strangers=1)
    assert [ask(budgets, path=HEALTH_PATH) for _ in range(3)] == [Reason.OK] * 3
    assert ask(budgets) is Reason.OK
    assert ask(budgets, path=HEALTH_PATH) is Reason.OK
    answers = [ask(budgets, path=HEALTH_PATH, token="x") for _ in range(2)]
    assert answers == [Reason.INVALID_TOKEN, Reason.RATE_LIMITED]


@given(st.sampled_from([step.name for step in GUARD_ORDER] + ["none"]))
def test_what_is_counted_is_what_the_table_says(step: str) -> None:
    window = RateWindow(60.0, 10)
    budgets = RateBudgets(window, window)
    if step == "rate":
        window = RateWindow(60.0, 1, [99.0])
        budgets = RateBudgets(window, window)
    before = len(window.stamps)
    headers: dict[str, object] = {"host": HOST}
    change: dict[str, Any] = {}
    for name, value in FAILURES.get(step, {}).items():
        (headers if name in {"host", "origin"} else change)[name] = value
    reason = ask(budgets, headers=headers, **change)
    assert (len(window.stamps) > before) == counts_toward_rate(reason)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=16), children, max_size=2)
    ),
    max_leaves=4,
)


@given(JUNK, JUNK, JUNK, JUNK, JUNK, JUNK)
def test_is_total_and_refuses_junk(  # noqa: PLR0917 - hypothesis fills them by position
    method: Any, path: Any, headers: Any, token: Any, hosts: Any, now: Any
) -> None:
    policy = guard_policy(hosts=hosts, routes=ROUTES, token=hide(token))
    verdict = verify_request(method, path, fold_headers(headers), token, policy, fresh(), now)
    assert not verdict.ok
    assert tokens_equal(token, path) in {True, False}
    assert loopback_hosts(token, now) == ()


@given(st.text())
def test_a_bearer_token_has_no_space_and_no_foreign_sign(text: str) -> None:
    token = bearer_token(text)
    assert token == "" or (token.isascii() and not set(token) & set(' \t,"'))


class NaiveWindow:
    """The definition: no more than `maximum` requests in any window."""

    def __init__(self, window: float, maximum: int) -> None:
        self.window, self.maximum = window, maximum
        self.stamps: list[float] = []

    def admit(self, now: float) -> bool:
        recent = [stamp for stamp in self.stamps if stamp > now - self.window]
        if len(recent) >= self.maximum:
            return False
        self.stamps.append(now)
        return True


@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.lists(st.integers(-3, 10), max_size=60),
)
def test_the_window_is_its_definition_whatever_the_clock_does(
    maximum: int, length: int, steps: list[int]
) -> None:
    window, naive = RateWindow(length, maximum), NaiveWindow(length, maximum)
    now = 0
    for step in steps:
        now += step
        admitted = window.check(now).ok
        if admitted:
            window.record(now)
        if min(steps) >= 0:
            assert admitted == naive.admit(now)
        assert len(window.stamps) <= maximum


def test_a_large_budget_keeps_few_stamps_and_the_same_rate() -> None:
    window = RateWindow.per_minute(10**9)
    assert window.max_requests == LONGEST_WINDOW_STAMPS
    assert window.max_requests / window.window == pytest.approx(10**9 / 60)
    assert RateWindow.per_minute(600).window == 60.0


def test_how_long_until_free() -> None:
    window = RateWindow(60.0, 2, [10.0, 20.0])
    assert window.seconds_until_free(30.0) == 40.0
    assert RateWindow(60.0, 2, [10.0]).seconds_until_free(30.0) == 0.0
    # Restored, or recorded by a clock that stepped back.
    assert RateWindow(60.0, 2, [20.0, 10.0]).seconds_until_free(30.0) == 40.0


@pytest.mark.parametrize("stamps", [None, 5, "x", {}, [math.nan], [True], ["1"], [None]])
def test_a_malformed_past_is_no_window(stamps: Any) -> None:
    assert restore_rate_window(60.0, 5, stamps) is None


@pytest.mark.parametrize(
    ("authorization", "api_key", "token"),
    [
        ("Bearer abc", None, "abc"),
        (None, "abc", "abc"),
        ("Bearer abc", "abc", "abc"),
        (None, None, ""),
        (None, "", ""),
        (None, "two words", ""),
        (None, 7, ""),
        ("Bearer abc", "abd", " "),
        ("Bearer abc", "", " "),
        ("Basic abc", "abc", " "),
        ("", "abc", " "),
    ],
)
def test_two_credentials_that_differ_are_equal_to_no_token(
    authorization: object, api_key: object, token: str
) -> None:
    assert presented_token(authorization, api_key) == token
