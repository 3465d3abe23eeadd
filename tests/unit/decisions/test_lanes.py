from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.lanes import (
    Lane,
    LaneCapabilities,
    LanePreferences,
    enforce_consent_policy,
    is_managed_lane,
    select_lane,
)
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

NEAREST_FIRST = ["local", "self_hosted", "enterprise", "openrouter", "direct_provider"]
PRIVACY_MODE = ["self_hosted", "enterprise", "local", "openrouter"]
CAPABILITY = {
    "in_browser_available": "local",
    "companion_available": "local",
    "self_hosted_available": "self_hosted",
    "enterprise_available": "enterprise",
    "openrouter_key_available": "openrouter",
    "managed_key_available": "direct_provider",
}
NOT_BOOLEANS: list[Any] = ["true", "false", "", 0, 1, [], {}, float("nan")]
NOTHING_SET = LanePreferences()
EVERYTHING = LaneCapabilities(**dict.fromkeys(CAPABILITY, True))

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.lists(st.text()),
    st.sampled_from([*Lane, *NEAREST_FIRST, "disabled"]),
)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=6)))
def test_every_combination(flags: tuple[bool, ...], private: bool, keep: bool) -> None:
    there = dict(zip(CAPABILITY, flags, strict=True))
    reachable = {CAPABILITY[name] for name, on in there.items() if on}
    if keep:
        reachable -= {"openrouter"}
    order = PRIVACY_MODE if private else NEAREST_FIRST
    expected = next((lane for lane in order if lane in reachable), "disabled")
    preferences = LanePreferences(keep_on_device=keep, org_privacy_mode=private)
    assert select_lane(LaneCapabilities(**there), preferences) == expected


@pytest.mark.parametrize("value", [*NOT_BOOLEANS, None])
@pytest.mark.parametrize("name", CAPABILITY)
def test_only_true_makes_a_lane_available(name: str, value: object) -> None:
    assert select_lane(LaneCapabilities(**{name: value}), NOTHING_SET) is Lane.DISABLED


@pytest.mark.parametrize("value", NOT_BOOLEANS)
def test_a_restriction_that_is_no_boolean_is_on(value: Any) -> None:
    managed = LaneCapabilities(managed_key_available=True)
    assert select_lane(managed, LanePreferences(org_privacy_mode=value)) is Lane.DISABLED
    router = LaneCapabilities(openrouter_key_available=True)
    assert select_lane(router, LanePreferences(keep_on_device=value)) is Lane.DISABLED


def test_a_restriction_never_set_is_off() -> None:
    managed = LaneCapabilities(managed_key_available=True)
    assert select_lane(managed, NOTHING_SET) is Lane.DIRECT_PROVIDER


def test_foreign_values_restrict_as_much_as_they_could() -> None:
    assert select_lane(None, NOTHING_SET) is Lane.DISABLED
    assert select_lane(dataclasses.asdict(EVERYTHING), NOTHING_SET) is Lane.DISABLED
    outward = LaneCapabilities(openrouter_key_available=True, managed_key_available=True)
    assert select_lane(outward, None) is Lane.DISABLED
    assert select_lane(EVERYTHING, None) is Lane.SELF_HOSTED


def test_the_managed_lane_is_one() -> None:
    assert [lane for lane in Lane if is_managed_lane(lane)] == [Lane.DIRECT_PROVIDER]
    assert not is_managed_lane("Direct_Provider")
    assert not is_managed_lane(None)


BOOLEANS = [False, True]


@pytest.mark.parametrize("lane", NEAREST_FIRST)
@pytest.mark.parametrize("flags", list(itertools.product(BOOLEANS, repeat=5)))
@pytest.mark.parametrize("consent", [None, "", "consent-1"])
def test_every_consent_decision(lane: str, flags: tuple[bool, ...], consent: str | None) -> None:
    private, delegate, managed_allowed, enriches, enrichment_allowed = flags
    if lane == "direct_provider":
        if delegate and not managed_allowed:
            expected = Reason.LANE_POLICY_DENIED
        elif private and not consent:
            expected = Reason.CLOUD_CONSENT_REQUIRED
        else:
            expected = Reason.ALLOW
    elif delegate and enriches and lane in {"local", "openrouter"} and not enrichment_allowed:
        expected = Reason.LANE_POLICY_DENIED
    else:
        expected = Reason.ALLOW
    verdict = enforce_consent_policy(
        lane,
        contains_private_data=private,
        is_delegate=delegate,
        delegated_managed_allowed=managed_allowed,
        enriches_delegated_partition=enriches,
        delegated_enrichment_allowed=enrichment_allowed,
        consent_id=consent,
    )
    assert verdict.reason is expected
    assert verdict.ok == (expected is Reason.ALLOW)


@pytest.mark.parametrize(
    "lane", ["disabled", "", "unknown", "Direct_Provider", "local ", None, 5, True, [], ["local"]]
)
def test_disabled_and_unknown_lanes_are_denied(lane: object) -> None:
    verdict = enforce_consent_policy(
        lane, contains_private_data=False, is_delegate=False, consent_id="consent-1"
    )
    assert (verdict.ok, verdict.reason) == (False, Reason.LANE_POLICY_DENIED)


def test_what_is_not_said_is_private_and_a_delegate() -> None:
    managed = Lane.DIRECT_PROVIDER
    assert enforce_consent_policy(managed).reason is Reason.LANE_POLICY_DENIED
    unsaid = enforce_consent_policy(managed, is_delegate=False)
    assert unsaid.reason is Reason.CLOUD_CONSENT_REQUIRED
    unsaid = enforce_consent_policy("local", enriches_delegated_partition=True)
    assert unsaid.reason is Reason.LANE_POLICY_DENIED


@pytest.mark.parametrize("value", NOT_BOOLEANS)
def test_no_opt_in_but_true(value: object) -> None:
    managed = enforce_consent_policy(
        "direct_provider",
        contains_private_data=False,
        is_delegate=True,
        delegated_managed_allowed=value,
    )
    assert managed.reason is Reason.LANE_POLICY_DENIED
    enriching = enforce_consent_policy(
        "local",
        is_delegate=True,
        enriches_delegated_partition=True,
        delegated_enrichment_allowed=value,
    )
    assert enriching.reason is Reason.LANE_POLICY_DENIED


@pytest.mark.parametrize("consent", [None, "", "   ", "\t\n", True, 1, [], ["id"], b"id"])
def test_what_is_no_consent(consent: object) -> None:
    verdict = enforce_consent_policy(
        "direct_provider", contains_private_data=True, is_delegate=False, consent_id=consent
    )
    assert verdict.reason is Reason.CLOUD_CONSENT_REQUIRED


@given(st.tuples(*[ANYTHING] * 8))
def test_selection_is_total_and_offers_only_what_is_there(values: tuple[Any, ...]) -> None:
    capabilities = LaneCapabilities(**dict(zip(CAPABILITY, values, strict=False)))
    preferences = LanePreferences(keep_on_device=values[6], org_privacy_mode=values[7])
    lane = select_lane(capabilities, preferences)
    assert lane is select_lane(capabilities, preferences)
    if lane is not Lane.DISABLED:
        on = {CAPABILITY[n] for n in CAPABILITY if getattr(capabilities, n) is True}
        assert lane in on


@given(st.tuples(*[ANYTHING] * 7))
def test_consent_is_total_and_says_no_input(values: tuple[Any, ...]) -> None:
    lane, private, delegate, managed_allowed, enriches, enrichment_allowed, consent = values
    keywords = {
        "contains_private_data": private,
        "is_delegate": delegate,
        "delegated_managed_allowed": managed_allowed,
        "enriches_delegated_partition": enriches,
        "delegated_enrichment_allowed": enrichment_allowed,
        "consent_id": consent,
    }
    verdict = enforce_consent_policy(lane, **keywords)
    assert verdict is enforce_consent_policy(lane, **keywords), "answers are made once"
    assert verdict.reason in {
        Reason.ALLOW,
        Reason.LANE_POLICY_DENIED,
        Reason.CLOUD_CONSENT_REQUIRED,
    }
    if verdict.ok:
        assert lane in NEAREST_FIRST
