"""Clients never get the last descriptor, and there is always room for some."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.descriptors import RESERVED, share_descriptors

pytestmark = pytest.mark.unit


@given(st.integers(64, 10**6), st.integers(1, 1024))
def test_all_together_stay_below_the_limit(limit: int, in_flight: int) -> None:
    room = share_descriptors(limit, in_flight)
    running = min(in_flight, room.connections)
    assert room.connections + running + 2 * room.accepted_at_once + RESERVED <= limit
    assert room.accepted_at_once >= 1


@pytest.mark.parametrize(
    ("limit", "connections", "at_once"),
    [(0, 4, 1), (52, 4, 1), (64, 16, 1), (256, 184, 13), (1024, 512, 61), (65_536, 512, 64)],
)
def test_what_the_usual_limits_have_room_for(limit: int, connections: int, at_once: int) -> None:
    room = share_descriptors(limit, 2)
    assert (room.connections, room.accepted_at_once) == (connections, at_once)
