"""Ranges of bytes behave as the sets of their bytes do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.extents import Extents, parse_extents

pytestmark = pytest.mark.unit

TOTAL = 24
RANGES = st.tuples(st.integers(0, TOTAL), st.integers(0, TOTAL))
STEPS = st.lists(st.tuples(st.booleans(), RANGES), max_size=12)


def bytes_of(extents: Extents) -> set[int]:
    return {at for start, end in extents.ranges for at in range(start, end)}


@given(STEPS)
def test_they_are_what_their_bytes_are(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    extents, model = Extents(), set[int]()
    for adds, (start, end) in steps:
        extents = extents.add(start, end) if adds else extents.remove(start, end)
        model = model | {*range(start, end)} if adds else model - {*range(start, end)}
        assert bytes_of(extents) == model
        assert extents.count == len(model)
        edges = [edge for pair in extents.ranges for edge in pair]
        assert edges == sorted(set(edges)), "in order, and none touches the next"
        missing = {at for gap in extents.missing(TOTAL) for at in range(*gap)}
        assert missing == {*range(TOTAL)} - model
        assert extents.covers(start, end) is ({*range(start, end)} <= model) or start >= end
        assert extents.is_prefix(len(model)) is (model == {*range(len(model))})
        assert parse_extents(json.loads(json.dumps(extents.ranges)), total=TOTAL) == extents


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_anything_else_is_none_and_nothing_raises(value: Any) -> None:
    parsed = parse_extents(value, total=TOTAL)
    assert parsed is None or json.loads(json.dumps(parsed.ranges)) == value


@pytest.mark.parametrize(
    "value",
    [
        [[0, 0]],
        [[1, 0]],
        [[-1, 2]],
        [[0, TOTAL + 1]],
        [[0, 2], [2, 3]],
        [[4, 5], [1, 2]],
        [[0, 1, 2]],
        [[False, True]],
        [(0, 1)],
        {"0": 1},
        [[at, at + 1] for at in range(0, 10000, 2)],
    ],
)
def test_what_is_not_in_order_or_not_in_the_file_is_none(value: Any) -> None:
    assert parse_extents(value, total=TOTAL if len(value) < 99 else 20000) is None
