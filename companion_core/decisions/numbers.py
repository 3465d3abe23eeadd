"""Rules for this file: what counts as a number in a decision.

A bool is never a number, a number is finite, and adding two of them stays finite: Python's
integers have no bound, and one too large for a float would raise inside a rule.
"""

from __future__ import annotations

from typing import Final, TypeGuard

__all__ = ["is_finite"]

_LARGEST: Final = 2.0**1000


def is_finite(value: object) -> TypeGuard[int | float]:
    """Return whether `value` is an int or float, no bool, NaN or infinity, below 2**1000."""
    # Exact types: a bool is an int, and another subclass may compare as it likes.
    return (type(value) is float or type(value) is int) and -_LARGEST < value < _LARGEST
