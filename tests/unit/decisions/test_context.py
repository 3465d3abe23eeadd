"""How many tokens each request in flight gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.context import LEAST_CONTEXT, place_context

pytestmark = pytest.mark.unit

KIB = 1024


@pytest.mark.parametrize(
    ("configured", "own", "rest", "expected"),
    [
        (4096, 8192, (2, KIB, 0), 4096),  # the person's word, whatever it takes
        (16_384, 8192, (2, KIB, 2**40), 8192),  # but no further than the model was trained
        (4096, None, (2, None, 0), 4096),
        (None, None, (2, None, 2**40), None),
        (None, 512, (2, KIB, 2**40), 512),  # each place has the model's own
        (None, 512, (2, None, 0), 512),
        (None, 131_072, (2, 128 * KIB, 8 * 2**30), 16_384),  # half of 8 GiB, for two
        (None, 131_072, (1, 128 * KIB, 8 * 2**30), 32_768),
        (None, 131_072, (3, 128 * KIB, 8 * 2**30), 10_752),  # whole steps
        (None, 131_072, (2, 128 * KIB, 0), LEAST_CONTEXT),
        (None, 2048, (2, 128 * KIB, 0), 2048),
    ],
)
def test_each_place_has_what_the_memory_can_hold_for_all(configured, own, rest, expected) -> None:
    places, bytes_per_token, room = rest
    found = place_context(
        configured, own, places=places, bytes_per_token=bytes_per_token, room=room
    )
    assert found == expected


@given(
    own=st.integers(1, 10**7),
    places=st.integers(1, 1024),
    bytes_per_token=st.integers(1, 2**24),
    room=st.integers(0, 2**45),
)
def test_it_is_never_above_the_models_own_nor_above_half_of_the_room(
    own, places, bytes_per_token, room
) -> None:
    found = place_context(None, own, places=places, bytes_per_token=bytes_per_token, room=room)
    assert found is not None
    assert 0 < found <= own
    if found > LEAST_CONTEXT:
        assert found * places * bytes_per_token <= room / 2
