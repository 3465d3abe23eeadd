"""What a companion tells of its way: one step at a time, for whoever shows it to a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnStep", "Step", "amount"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done on the way to available, and what proved it.

    Attributes:
        name: keychain, manifest, download, model, gateway, drain, runtime, available or stopped;
            silence where a command waits for the companion.
        text: for a person; never a secret, a digest or a prompt.
        done: bytes so far in a step that takes long, of `total`.
    """

    name: str
    text: str
    done: int = 0
    total: int = 0


def amount(done: int, total: int) -> str:
    """Say, for a person, how many bytes there are of all."""
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"


OnStep = Callable[[Step], None]
