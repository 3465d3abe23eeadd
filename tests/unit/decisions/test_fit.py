"""Whether a model fits, from what its head says."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.fit import Footprint, footprint_of, judge_fit, usable_memory
from companion_core.decisions.gguf import GgufHead

pytestmark = pytest.mark.unit

GIB = 2**30
# The shape of Qwen2.5-0.5B-Instruct, from its published configuration.
QWEN = {
    "general.architecture": "qwen2",
    "qwen2.block_count": 24,
    "qwen2.context_length": 32768,
    "qwen2.embedding_length": 896,
    "qwen2.attention.head_count": 14,
    "qwen2.attention.head_count_kv": 2,
}


def head(fields: dict[str, Any], numbers: dict[str, tuple[int, ...]] | None = None) -> GgufHead:
    return GgufHead(
        version=3,
        tensors=1,
        fields=MappingProxyType(fields),
        numbers=MappingProxyType(numbers or {}),
        lengths=MappingProxyType({"tokenizer.ggml.tokens": 151936}),
        data_ends=None,
        complete=True,
    )


def test_keys_and_values_of_a_token_are_counted() -> None:
    # 24 layers, 2 heads of 64 numbers each for keys and for values, 2 bytes a number.
    assert footprint_of(head(QWEN), weights=1).token == 24 * 2 * (64 + 64) * 2


def test_a_working_buffer_holds_the_words_of_a_batch() -> None:
    footprint = footprint_of(head(QWEN), weights=5)
    assert footprint.weights == 5
    assert 300 * 2**20 < footprint.working < 500 * 2**20
    assert footprint.longest == 32768


def test_layers_may_have_heads_of_their_own() -> None:
    fields = {name: value for name, value in QWEN.items() if not name.endswith("head_count_kv")}
    numbers = {"qwen2.attention.head_count_kv": (2, 0, 4, *([0] * 21))}
    assert footprint_of(head(fields, numbers), weights=1).token == 6 * 128 * 2


def test_heads_may_have_a_width_of_their_own() -> None:
    fields = {**QWEN, "qwen2.attention.key_length": 128, "qwen2.attention.value_length": 32}
    assert footprint_of(head(fields), weights=1).token == 24 * 2 * 160 * 2


@pytest.mark.parametrize("what", [None, "head", 5])
def test_without_a_head_the_weights_count_alone(what: object) -> None:
    footprint = footprint_of(what, weights=GIB)
    assert (footprint.weights, footprint.token, footprint.longest) == (GIB, 0, None)


def test_the_models_own_context_is_taken_where_it_fits() -> None:
    footprint = footprint_of(head(QWEN), weights=GIB)
    fit = judge_fit(footprint, available=16 * GIB, places=2)
    assert (fit.fits, fit.context, fit.shortened) == (True, 32768, False)
    assert fit.needed == footprint.total(32768, 2)


def test_a_shorter_context_is_taken_where_no_more_fits() -> None:
    footprint = footprint_of(head(QWEN), weights=GIB)
    fit = judge_fit(footprint, available=footprint.total(10000, 2), places=2)
    assert fit.fits
    assert fit.shortened
    assert fit.context is not None
    assert fit.context < 10000


def test_weights_that_do_not_fit_do_not_fit() -> None:
    footprint = footprint_of(head(QWEN), weights=4 * GIB)
    assert not judge_fit(footprint, available=4 * GIB, places=2).fits


@pytest.mark.parametrize(("available", "fits"), [(64 * GIB, True), (GIB, False)])
def test_a_configured_context_is_kept(available: int, fits: bool) -> None:
    footprint = footprint_of(head(QWEN), weights=GIB)
    fit = judge_fit(footprint, available=available, places=1, configured=16_384)
    assert (fit.fits, fit.context) == (fits, 16_384)


def test_a_model_that_tells_nothing_leaves_the_context_to_the_runtime() -> None:
    fit = judge_fit(footprint_of(None, weights=GIB), available=8 * GIB, places=1)
    assert (fit.fits, fit.context, fit.shortened) == (True, None, False)


@given(
    st.builds(
        Footprint,
        weights=st.integers(0, 2**40),
        token=st.integers(0, 2**22),
        working=st.integers(0, 2**32),
        longest=st.none() | st.integers(1, 2**24),
    ),
    st.integers(0, 2**42),
    st.integers(1, 64),
)
def test_it_fits_exactly_where_what_is_needed_is_there(
    footprint: Footprint, available: int, places: int
) -> None:
    fit = judge_fit(footprint, available=available, places=places)
    assert fit.fits is (fit.needed <= available)
    assert fit.needed == footprint.total(fit.context or 0, places)


GB = 10**9


@pytest.mark.parametrize(
    ("weights", "ceilings", "free", "usable"),
    [
        (1, (8, None), (24, 0), 8),  # the ceiling
        (1, (8, None), (3, 0), 3),  # what is free
        (1, (8, 2), (24, 0), 2),  # as configured, whether there is an accelerator or not
        (1, (8, None), (24, 16), 16),  # it fits into the accelerator, context and all
        (1, (8, 4), (24, 16), 4),
        (20, (30, None), (24, 16), 24),  # it does not, so that the rest is computed elsewhere
        (16, (30, None), (24, 16), 24),
        (20, (30, 40), (24, 16), 24),
    ],
)
def test_a_start_plans_with_what_is_free_within_the_ceilings(
    weights, ceilings, free, usable
) -> None:
    footprint = Footprint(weights=weights * GB, token=0, working=0, longest=None)
    max_ram, max_vram = ceilings
    free_ram, free_vram = free
    found = usable_memory(
        footprint,
        max_ram=max_ram * GB,
        max_vram=None if max_vram is None else max_vram * GB,
        free_ram=free_ram * GB,
        free_vram=free_vram * GB,
    )
    assert found == usable * GB
