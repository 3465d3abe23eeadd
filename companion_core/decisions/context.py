"""Rules for this file: how many tokens of context each request in flight gets.

Pure; imports nothing of the package, and never starts or measures anything. What is admitted
together must fit together, so a runtime is planned with a context of this length for each of
its places.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LEAST_CONTEXT", "place_context"]

# What a model gets of its own length however little memory there is: the start then shows
# whether that fits, and `restart.smaller` goes on from there.
LEAST_CONTEXT: Final = 4096
_STEP: Final = 256  # llama.cpp pads a context to whole steps of this


def place_context(
    configured: int | None,
    own: int | None,
    *,
    places: int,
    bytes_per_token: int | None,
    room: int,
) -> int | None:
    """Return the tokens of context for each place; None leaves it to the runtime.

    A configured length counts, but a model is not used beyond the length it was trained for.
    Without one each place gets the model's own length, or less where all places together would
    take more than half of the room; the other half is for what is computed.

    Args:
        configured: by the person; None leaves it to the model.
        own: the model's; None where it does not say.
        places: requests in flight at most.
        bytes_per_token: memory for each token of context; None where it is unknown.
        room: bytes within the ceiling of memory that the weights and the working buffers leave.
    """
    if configured is not None:
        return configured if own is None else min(configured, own)
    if own is None or not bytes_per_token:
        return own
    fitting = room // 2 // (places * bytes_per_token) // _STEP * _STEP
    return min(own, max(fitting, LEAST_CONTEXT))
