"""What a companion tells while it starts, swaps or stops: one step at a time, for a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnStep", "Step", "amount"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step that was taken, and what proved it.

    Attributes:
        name: keychain, manifest, download, model, gateway, drain, runtime, available or stopped;
            silence where a companion does not answer a command for some time.
        text: for a person; never a secret, a digest or a prompt.
        done: bytes so far of `total`, in a step that takes long.
    """

    name: str
    text: str
    done: int = 0
    total: int = 0


def amount(done: int, total: int) -> str:
    """Say for a person how many bytes of how many there are."""
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"


OnStep = Callable[[Step], None]
