from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.numbers import is_finite

pytestmark = pytest.mark.unit

LARGEST = 2.0**1000


@pytest.mark.parametrize("value", [0, -1, 1.5, 2**64, math.nextafter(LARGEST, 0)])
def test_numbers(value: float) -> None:
    assert is_finite(value)


@pytest.mark.parametrize(
    "value", [True, False, None, "1", [], 1j, math.nan, math.inf, LARGEST, -LARGEST, 2**1000]
)
def test_everything_else(value: object) -> None:
    assert not is_finite(value)


@given(st.one_of(st.integers(), st.floats()), st.one_of(st.integers(), st.floats()))
def test_sums_and_differences_of_numbers_stay_finite(left: float, right: float) -> None:
    if is_finite(left) and is_finite(right):
        assert math.isfinite(left + right)
        assert math.isfinite(left - right)
