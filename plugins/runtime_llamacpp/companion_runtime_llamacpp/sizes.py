"""Rules for this file: the sizes that depend on one another, for both forms of llama.cpp.

Pure. llama.cpp divides one context among its places, and reads a prompt in batches: sizes that are
chosen apart from each other fail in the middle of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from companion_runtime_llamacpp.options import Options

__all__ = ["Sizes", "choose_sizes"]

# llama.cpp's own batches, logical and physical.
_BATCH: Final = 2048
_UBATCH: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What llama.cpp is told, in tokens.

    Attributes:
        total_context: of all places together; 0 lets it take the model's own.
        batch: tokens of prompts that are taken up at once; None leaves it to llama.cpp.
        ubatch: tokens that are computed at once, at most `batch`; None leaves it to llama.cpp.
    """

    total_context: int
    batch: int | None
    ubatch: int | None


def choose_sizes(*, places: int, context_length: int | None, options: Options) -> Sizes:
    """Return the sizes for so many requests at once.

    Each place gets a context of its own, so that requests which are admitted together fit
    together: llama.cpp divides `total_context` evenly. An embedding is computed in one physical
    batch, so that holds as much as a place does; otherwise a prompt may take several, and no batch
    is longer than all places together.
    """
    total = (context_length or 0) * places
    if options.embeddings:
        whole = context_length or _BATCH
        return Sizes(total_context=total, batch=whole, ubatch=whole)
    batch, ubatch = options.batch_size, options.ubatch_size
    if batch is None and ubatch is None:
        return Sizes(total_context=total, batch=None, ubatch=None)
    # One that is set takes the other along: llama.cpp cuts the physical one to the logical one.
    batch = max(_BATCH, ubatch or 0) if batch is None else batch
    batch = min(batch, total) if total else batch
    return Sizes(total_context=total, batch=batch, ubatch=min(ubatch or _UBATCH, batch))
