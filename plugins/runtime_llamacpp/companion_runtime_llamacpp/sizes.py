"""Rules for this file: the sizes that depend on one another, for both forms of llama.cpp.

Pure. llama.cpp divides one context among its places, and reads a prompt in batches: sizes that are
chosen apart from each other fail in the middle of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Sizes", "choose_sizes"]

# llama.cpp's own logical batch, where the length of the context is unknown.
_BATCH: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What llama.cpp is told, in tokens.

    Attributes:
        total_context: of all places together; 0 lets it take the model's own.
        batch: logical and physical; None leaves both to llama.cpp.
    """

    total_context: int
    batch: int | None


def choose_sizes(*, places: int, context_length: int | None, embeddings: bool) -> Sizes:
    """Return the sizes for so many requests at once.

    Each place gets a context of its own, so that requests which are admitted together fit
    together: llama.cpp divides `total_context` evenly. An embedding is computed in one physical
    batch, so that holds as much as a place does; otherwise a prompt may take several.
    """
    batch = (context_length or _BATCH) if embeddings else None
    return Sizes(total_context=(context_length or 0) * places, batch=batch)
