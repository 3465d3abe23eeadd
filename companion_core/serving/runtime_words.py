"""Where a model is computed and with how much context, in words; the step and the status say it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from companion_core.decisions.placement import Placement

__all__ = ["PLACES", "told_runtime"]

PLACES: Final[Mapping[str, str]] = MappingProxyType(
    {
        Placement.GPU: "on the accelerator",
        Placement.PARTLY_GPU: "partly on the accelerator, partly on the processor",
        Placement.CPU: "on the processor",
        Placement.UNKNOWN: "where the runtime does not say",
    }
)


def told_runtime(placement: str, context: int | None, own: int | None) -> str:
    """Return one line for a person.

    Args:
        placement: a `Placement`.
        context: tokens for each request; None where the runtime chooses.
        own: tokens that the model was made for; None where it does not say.
    """
    place = PLACES[placement]
    if context is None:
        return place
    fewer = "" if own is None or own <= context else f", of {own:,} that the model was made for"
    return f"{place}; {context:,} tokens of context for each request{fewer}"
