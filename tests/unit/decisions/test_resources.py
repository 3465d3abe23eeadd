from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.resources import check_limits, check_memory, evaluate_resources
from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import Reason
from companion_core.providers import ResourceLimits, ResourceObservation

pytestmark = pytest.mark.unit

LIMITS = ResourceLimits(max_ram_bytes=8_000, max_vram_bytes=4_000, max_cpu_percent=80)
CALM = ResourceObservation(ram_bytes=1_000, vram_bytes=500, cpu_percent=10)

NOT_NUMBERS = [None, True, False, "1", [], {}, b"1", math.nan, math.inf, -math.inf, -1, 10**400]
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


def _with(value: Any, **changes: Any) -> Any:
    return dataclasses.replace(value, **changes)


def test_within_the_ceilings() -> None:
    assert check_limits(LIMITS) is OK
    assert evaluate_resources(CALM, LIMITS) is OK


@pytest.mark.parametrize(
    ("needed", "free_ram", "free_vram", "reason"),
    [
        (1_000, 1_000, 0, Reason.OK),
        (1_001, 1_000, 0, Reason.MEMORY_SHORT),
        (1_001, 1_000, 1, Reason.OK),
        (8_000, 9_000, 0, Reason.OK),
        (8_001, 90_000, 0, Reason.RAM_OVER_LIMIT),
        (12_000, 90_000, 90_000, Reason.OK),
        (12_001, 90_000, 90_000, Reason.RAM_OVER_LIMIT),  # VRAM counts up to its ceiling
        (-1, 1, 1, Reason.MALFORMED_OBSERVATION),
        (1, -1, 1, Reason.MALFORMED_OBSERVATION),
        (1, 1, -1, Reason.MALFORMED_OBSERVATION),
        (1, None, 1, Reason.MALFORMED_OBSERVATION),
        (1, 1, math.nan, Reason.MALFORMED_OBSERVATION),
        (True, 1, 1, Reason.MALFORMED_OBSERVATION),
    ],
)
def test_a_model_must_fit_before_it_is_loaded(needed, free_ram, free_vram, reason) -> None:
    assert check_memory(needed, free_ram, free_vram, LIMITS).reason is reason
    assert check_memory(1, 1, 1, None).reason is Reason.MALFORMED_LIMITS
    assert check_memory(1, 1, 1, _with(LIMITS, max_ram_bytes=0)).reason is Reason.MALFORMED_LIMITS


def test_without_a_vram_ceiling_all_that_is_free_counts() -> None:
    limits = _with(LIMITS, max_vram_bytes=None)
    assert check_memory(98_000, 0, 98_000, limits) is OK


def test_equal_to_a_ceiling_is_within_it() -> None:
    at = ResourceObservation(ram_bytes=8_000, vram_bytes=4_000, cpu_percent=80)
    assert evaluate_resources(at, LIMITS) is OK


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"ram_bytes": 8_001}, Reason.RAM_OVER_LIMIT),
        ({"vram_bytes": 4_001}, Reason.VRAM_OVER_LIMIT),
        ({"cpu_percent": 80.01}, Reason.CPU_OVER_LIMIT),
        ({"ram_bytes": 8_001, "vram_bytes": 4_001, "cpu_percent": 81}, Reason.RAM_OVER_LIMIT),
        ({"vram_bytes": 4_001, "cpu_percent": 81}, Reason.VRAM_OVER_LIMIT),
    ],
)
def test_over_a_ceiling_and_in_order(over: dict[str, float], reason: Reason) -> None:
    assert evaluate_resources(_with(CALM, **over), LIMITS) is refuse(reason)


def test_without_a_vram_ceiling_any_vram_is_within() -> None:
    unlimited = _with(LIMITS, max_vram_bytes=None)
    assert check_limits(unlimited) is OK
    assert evaluate_resources(_with(CALM, vram_bytes=2**60), unlimited) is OK


@pytest.mark.parametrize("bad", [*NOT_NUMBERS, 0])
@pytest.mark.parametrize("field", ["max_ram_bytes", "max_vram_bytes", "max_cpu_percent"])
def test_malformed_limits_deny(field: str, bad: object) -> None:
    if field == "max_vram_bytes" and bad is None:
        return  # the one way to say "no ceiling"; proved above
    limits = _with(LIMITS, **{field: bad})
    assert check_limits(limits) is refuse(Reason.MALFORMED_LIMITS)
    assert evaluate_resources(CALM, limits) is refuse(Reason.MALFORMED_LIMITS)


def test_a_cpu_ceiling_is_a_share_of_the_machine() -> None:
    assert check_limits(_with(LIMITS, max_cpu_percent=100)) is OK
    assert not check_limits(_with(LIMITS, max_cpu_percent=100.1)).ok


@pytest.mark.parametrize("bad", NOT_NUMBERS)
@pytest.mark.parametrize("field", ["ram_bytes", "vram_bytes", "cpu_percent"])
def test_a_malformed_observation_denies(field: str, bad: object) -> None:
    observation = _with(CALM, **{field: bad})
    assert evaluate_resources(observation, LIMITS) is refuse(Reason.MALFORMED_OBSERVATION)


def test_an_observation_of_zero_is_one() -> None:
    assert evaluate_resources(_with(CALM, ram_bytes=0, vram_bytes=0, cpu_percent=0), LIMITS).ok


def test_a_ceiling_may_be_as_small_as_one_likes() -> None:
    tiny = ResourceLimits(max_ram_bytes=1, max_vram_bytes=1, max_cpu_percent=0.5)
    assert check_limits(tiny) is OK


def test_limits_are_judged_before_the_observation() -> None:
    assert evaluate_resources(None, None) is refuse(Reason.MALFORMED_LIMITS)
    assert evaluate_resources(None, LIMITS) is refuse(Reason.MALFORMED_OBSERVATION)


def test_what_only_looks_like_the_value_is_malformed() -> None:
    assert not check_limits(dataclasses.asdict(LIMITS)).ok
    assert not evaluate_resources(dataclasses.asdict(CALM), LIMITS).ok


@given(st.tuples(ANYTHING, ANYTHING, ANYTHING), st.tuples(ANYTHING, ANYTHING, ANYTHING))
def test_total_deterministic_and_fail_closed(seen: tuple[Any, ...], top: tuple[Any, ...]) -> None:
    observation = ResourceObservation(ram_bytes=seen[0], vram_bytes=seen[1], cpu_percent=seen[2])
    limits = ResourceLimits(max_ram_bytes=top[0], max_vram_bytes=top[1], max_cpu_percent=top[2])
    verdict = evaluate_resources(observation, limits)
    assert verdict is evaluate_resources(observation, limits), "answers are made once"
    if verdict.ok:
        for used, ceiling in zip(seen, top, strict=True):
            assert not isinstance(used, bool)
            assert 0 <= used < math.inf
            assert ceiling is None or used <= ceiling


@given(ANYTHING, ANYTHING)
def test_total_on_foreign_values(observation: object, limits: object) -> None:
    assert not evaluate_resources(observation, limits).ok
    assert not evaluate_resources(observation, LIMITS).ok
    assert not check_limits(limits).ok
