"""The guard and its rates hold at their edges: the last that passes, the first that does not."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.decisions.guard import (
    GUARD_ORDER,
    HEALTH_PATH,
    RateBudgets,
    bearer_token,
    fold_headers,
    guard_policy,
    is_loopback_host,
    loopback_hosts,
    tokens_equal,
    verify_request,
)
from companion_core.decisions.rate import LONGEST_WINDOW_STAMPS, RateWindow, restore_rate_window
from companion_core.decisions.verdict import OK
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit


# --- the guard ------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "ok"), [(0, False), (1, True), (65535, True), (65536, False)])
def test_the_ports_of_a_listener(port: int, ok: bool) -> None:
    assert bool(loopback_hosts("127.0.0.1", port)) is ok
    hosts = (f"127.0.0.1:{port}",)
    assert guard_policy(hosts=hosts, routes={}, token=None).hosts == frozenset(hosts if ok else ())


def test_the_names_of_a_listener() -> None:
    assert loopback_hosts("127.0.0.1", 8) == ("127.0.0.1:8", "localhost:8")
    assert loopback_hosts("::1", 8) == ("[::1]:8",)
    assert loopback_hosts("localhost", 8) == ()


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:1", "[::1]:1", "LOCALHOST:1"])
def test_loopback_has_three_names(host: str) -> None:
    assert is_loopback_host(host)
    assert guard_policy(hosts=[host], routes={}, token=None).hosts == {host.lower()}


def test_what_is_no_name_is_folded_into_none() -> None:
    assert fold_headers({1: "x", "A": "y"}) == {"": "x", "a": "y"}
    assert fold_headers({1: "x", 2: "y"}) == {"": None}
    assert fold_headers({"A": "x", "a": "x"}) == {"a": None}


def test_a_token_has_256_bits() -> None:
    assert guard_policy(hosts=(), routes={}, token=Secret("a" * 43)).token == Secret("a" * 43)
    assert guard_policy(hosts=(), routes={}, token=Secret("a" * 42)).token is None


@pytest.mark.parametrize("other", ["", None, 1, "\ud800", "a\0"])
def test_no_other_text_is_the_token(other: object) -> None:
    assert not tokens_equal("a", other)
    assert not tokens_equal(other, "a")
    assert not tokens_equal(None, None)


def test_the_order_of_the_guard_is_the_one_that_others_rely_on() -> None:
    assert HEALTH_PATH == "/-/health"
    assert [(step.name, " ".join(step.reasons), step.counted) for step in GUARD_ORDER] == [
        ("structure", "malformed_request", False),
        ("method", "method_not_allowed", False),
        ("path", "path_not_allowed", False),
        ("host", "host_not_allowed", False),
        ("origin", "cross_site_forbidden", False),
        ("rate", "rate_state_unavailable rate_limited", False),
        ("token", "missing_token invalid_token ok", True),
    ]


@pytest.mark.parametrize("value", ["Bearer ==", "Bearer ", "Bearer", "Bearera", "Basic a", None])
def test_what_is_no_bearer_token(value: object) -> None:
    assert not bearer_token(value)


def test_a_scheme_ignores_case_and_a_token_does_not() -> None:
    assert bearer_token("bEARER aB==") == "aB=="


def test_a_time_of_any_size_is_judged() -> None:
    window = RateWindow(60.0, 1)
    for now in (10**400, -(10**400), float("inf")):
        assert window.check(now).reason is Reason.RATE_STATE_UNAVAILABLE
        assert window.take(now).reason is Reason.RATE_STATE_UNAVAILABLE
        assert restore_rate_window(60.0, 1, [now]) is None
        policy = guard_policy(hosts=(), routes={}, token=None)
        budgets = RateBudgets(window, window)
        verdict = verify_request("GET", "/", {}, "", policy, budgets, now)
        assert verdict.reason is Reason.MALFORMED_REQUEST


# --- rates ----------------------------------------------------------------------------------


def test_a_budget_is_kept_as_asked_up_to_the_most_stamps() -> None:
    assert LONGEST_WINDOW_STAMPS == 4096
    for requests, window, most in ((1, 60.0, 1), (600, 60.0, 600), (4096, 60.0, 4096)):
        made = RateWindow.per_minute(requests)
        assert (made.window, made.max_requests) == (window, most)
    made = RateWindow.per_minute(8192)
    assert (made.window, made.max_requests) == (30.0, 4096)


@pytest.mark.parametrize(
    ("bounds", "word"),
    [
        ((0, 1), "window"),
        ((True, 1), "window"),
        ((60.0, 0), "max_requests"),
        ((60.0, 1.0), "max_requests"),
        ((60.0, 1, ["x"]), "stamps"),
    ],
)
def test_a_malformed_window_is_named(bounds: tuple[Any, ...], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}$"):
        RateWindow(*bounds)


def test_a_time_that_is_none_is_not_recorded() -> None:
    with pytest.raises(ValueError, match=r"^now$"):
        RateWindow().record(None)


def test_the_default_is_sixty_in_a_minute() -> None:
    window = RateWindow()
    assert (window.window, window.max_requests, window.stamps) == (60.0, 60, ())


def test_a_stamp_leaves_when_its_window_is_over() -> None:
    window = RateWindow(60.0, 1, [10.0])
    assert window.check(69.9).reason is Reason.RATE_LIMITED
    assert window.check(70.0) is OK


def test_after_a_step_back_each_stamp_still_leaves_in_its_time() -> None:
    window = RateWindow(60.0, 9)
    for now in (10.0, 5.0, 12.0):
        window.record(now)
    assert window._sorted is False
    window.check(66.0)
    assert window.stamps == (10.0, 12.0)
    assert window._sorted, "in order again, so that expiry costs nothing again"
    assert RateWindow(60.0, 9, [1.0, 2.0])._sorted
    assert not RateWindow(60.0, 9, [2.0, 1.0])._sorted


def test_equal_times_are_in_order() -> None:
    window = RateWindow(60.0, 9)
    window.record(1.0)
    window.record(1.0)
    assert window._sorted


def test_a_full_window_forgets_its_oldest() -> None:
    window = RateWindow(60.0, 2, [1.0, 2.0])
    window.record(3.0)
    assert window.stamps == (2.0, 3.0)


def test_a_little_is_left_until_free() -> None:
    assert RateWindow(60.0, 1, [10.0]).seconds_until_free(69.5) == 0.5
    assert RateWindow(60.0, 1, [10.0]).seconds_until_free(99.0) == 0.0
