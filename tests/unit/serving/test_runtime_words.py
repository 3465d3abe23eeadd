from __future__ import annotations

import pytest

from companion_core.decisions.placement import Placement
from companion_core.serving.runtime_words import PLACES, told_runtime

pytestmark = pytest.mark.unit


def test_every_place_has_words() -> None:
    assert PLACES.keys() == set(Placement)


@pytest.mark.parametrize(
    ("context", "own", "told"),
    [
        (None, None, "on the processor"),
        (4096, None, "on the processor; 4,096 tokens of context for each request"),
        (4096, 4096, "on the processor; 4,096 tokens of context for each request"),
        (
            4096,
            131072,
            "on the processor; 4,096 tokens of context for each request, "
            "of 131,072 that the model was made for",
        ),
    ],
)
def test_a_shorter_context_than_the_models_own_is_told(context, own, told) -> None:
    assert told_runtime("cpu", context, own) == told
