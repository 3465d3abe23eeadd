"""Rules: whether a model fits this machine, told before its bytes are fetched.

Estimates from the head of a GGUF file, as llama.cpp uses memory: the weights, the keys and values
of each token of each place, and a working buffer. Imports no I/O; never raises on bad input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from companion_core.decisions.context import place_context
from companion_core.decisions.gguf import GgufHead

__all__ = ["Fit", "Footprint", "footprint_of", "judge_fit", "usable_memory"]

_CACHE_BYTES: Final = 2  # of a number in the cache of keys and values: f16
_BATCH: Final = 512  # tokens that are worked on at once
_FLOAT_BYTES: Final = 4
_BASE_BYTES: Final = 96 * 2**20  # the program, its libraries and what it allocates besides
_MAX_LAYERS: Final = 4096
_SENSIBLE: Final = 2**24  # no length, width or count of a real model is above this


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """How much memory a model takes.

    Attributes:
        weights: bytes of its files.
        token: bytes of keys and values for one token of context; 0 if the head does not tell.
        working: bytes of the buffers and of the program.
        longest: the context that the model was made for, in tokens; None if it is not told.
    """

    weights: int
    token: int
    working: int
    longest: int | None

    def total(self, context: int, places: int) -> int:
        """Return the bytes for `places` requests at once, each with its own context."""
        return self.weights + self.working + self.token * context * places


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether and how a model fits.

    Attributes:
        fits: it runs within the memory there is.
        context: tokens for each request; None if the model does not say how many it can use.
        needed: bytes, with that context.
        available: bytes, as given.
        shortened: the context is shorter than the model's own.
    """

    fits: bool
    context: int | None
    needed: int
    available: int
    shortened: bool


def footprint_of(head: object, *, weights: object) -> Footprint:
    """Return what a model of this head takes.

    Args:
        head: a `GgufHead`, of the first part of a split model; anything else tells nothing.
        weights: bytes of all its files.
    """
    size = weights if type(weights) is int and weights > 0 else 0
    if type(head) is not GgufHead:
        return Footprint(weights=size, token=0, working=_BASE_BYTES, longest=None)
    vocabulary = min(head.lengths.get("tokenizer.ggml.tokens", 0), _SENSIBLE)
    width = _number(head, "embedding_length")
    logits = _BATCH * vocabulary * _FLOAT_BYTES
    activations = 8 * _BATCH * width * _FLOAT_BYTES  # of one layer, the widest of which is 4 times
    return Footprint(
        weights=size,
        token=_token_bytes(head),
        working=_BASE_BYTES + logits + activations,
        longest=_number(head, "context_length") or None,
    )


def usable_memory(
    footprint: Footprint, *, max_ram: int, max_vram: int | None, free_ram: int, free_vram: int
) -> int:
    """Return how many bytes a start may plan with: what is free, within the ceilings.

    A model that fits into the memory of an accelerator is to stay there, context and all: what
    does not is computed many times slower. Any other is planned within ordinary memory.

    Args:
        footprint: of the model.
        max_ram: the ceiling of memory, in bytes.
        max_vram: the ceiling of the accelerators' memory; None for no ceiling.
        free_ram: that can be had without swapping.
        free_vram: of the accelerators; 0 without any.
    """
    ram = min(max_ram, free_ram)
    if free_vram <= 0:
        return ram if max_vram is None else min(ram, max_vram)
    video = free_vram if max_vram is None else min(free_vram, max_vram)
    return video if footprint.total(0, 1) < video else ram


def judge_fit(
    footprint: Footprint, *, available: int, places: int, configured: int | None = None
) -> Fit:
    """Choose the context of each place as a start does, and say whether all of it fits.

    Args:
        footprint: of the model.
        available: bytes that may be used, such as the ceiling of memory.
        places: requests that are worked on at once, at least 1.
        configured: tokens of context that the person configured.
    """
    context = place_context(
        configured,
        footprint.longest,
        places=places,
        bytes_per_token=footprint.token or None,
        room=max(0, available - footprint.total(0, places)),
    )
    needed = footprint.total(context or 0, places)
    longest = footprint.longest
    return Fit(
        fits=needed <= available,
        context=context,
        needed=needed,
        available=available,
        shortened=context is not None and longest is not None and context < longest,
    )


def _number(head: GgufHead, key: str) -> int:
    found = head.number(key)
    return found if found is not None and found <= _SENSIBLE else 0


def _token_bytes(head: GgufHead) -> int:
    """Return the bytes of keys and values that one token takes in all layers."""
    layers = min(_number(head, "block_count"), _MAX_LAYERS)
    heads = _number(head, "attention.head_count")
    width = _number(head, "embedding_length")
    each = width // heads if heads else 0
    key = _number(head, "attention.key_length") or each
    value = _number(head, "attention.value_length") or each
    per_layer = head.numbers.get(f"{head.architecture}.attention.head_count_kv")
    if per_layer is None:
        shared = _number(head, "attention.head_count_kv") or heads
        per_layer = (shared,) * layers
    kept = sum(min(max(count, 0), _SENSIBLE) for count in per_layer[:layers])
    return kept * (key + value) * _CACHE_BYTES
