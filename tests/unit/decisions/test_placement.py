from __future__ import annotations

import pytest

from companion_core.decisions.placement import (
    Placement,
    check_placement,
    is_placement_text,
    judge_placement,
    read_placement,
)
from companion_core.decisions.verdict import OK
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

LAYERS = "offloaded {placed}/{all} layers to GPU"
BYTES = "placed on accelerators: {placed} MiB"
TEXTS = (LAYERS, BYTES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("load_tensors: offloaded 25/25 layers to GPU", Placement.GPU),
        ("load_tensors: offloaded 7/25 layers to GPU", Placement.PARTLY_GPU),
        ("load_tensors: offloaded 0/25 layers to GPU", Placement.CPU),
        ('level=INFO msg="offloaded 25/25 layers to GPU"', Placement.GPU),
        ("placed on accelerators: 0 MiB", Placement.CPU),
        ("placed on accelerators: 812 MiB", Placement.GPU),
        ("offloaded some/25 layers to GPU", None),
        ("offloaded 7 layers to GPU", None),
        ("offloaded -7/25 layers to GPU", None),
        ("placed on accelerators: MiB", None),
        (f"placed on accelerators: {'9' * 17} MiB", None),
        ("", None),
    ],
)
def test_only_a_lines_own_number_counts(line, said) -> None:
    assert read_placement(TEXTS, line) is said


def test_a_text_is_literal_but_for_its_numbers() -> None:
    assert read_placement((".* ({placed}) [of] {all}+",), "x (1) [of] 2") is None
    assert read_placement((".* ({placed}) [of] {all}+",), ".* (1) [of] 2+") is Placement.PARTLY_GPU
    assert read_placement(("{placed}",), "on 4") is Placement.GPU
    assert read_placement((), "offloaded 25/25 layers to GPU") is None


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (LAYERS, True),
        (BYTES, True),
        ("{all}: {placed}", True),
        ("offloaded {all} layers", False),
        ("{placed}/{placed}", False),
        ("{placed}/{all}/{all}", False),
        ("{placed}\n", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_a_text_names_what_is_placed_once(text, allowed) -> None:
    assert is_placement_text(text) is allowed


@pytest.mark.parametrize("told", [None, *Placement])
def test_without_an_accelerator_it_is_the_processor_whatever_is_said(told) -> None:
    assert judge_placement(told, reaches_gpu=False) is Placement.CPU


def test_with_one_the_runtimes_word_counts_and_nothing_is_guessed() -> None:
    assert judge_placement(Placement.GPU, reaches_gpu=True) is Placement.GPU
    assert judge_placement(Placement.CPU, reaches_gpu=True) is Placement.CPU
    assert judge_placement(None, reaches_gpu=True) is Placement.UNKNOWN


@pytest.mark.parametrize(
    ("placement", "enough"),
    [
        (Placement.GPU, True),
        (Placement.PARTLY_GPU, True),
        (Placement.CPU, False),
        (Placement.UNKNOWN, False),
    ],
)
def test_a_required_accelerator_has_to_be_known_to_be_used(placement, enough) -> None:
    assert check_placement(placement, require_gpu=False) == OK
    verdict = check_placement(placement, require_gpu=True)
    assert verdict.ok is enough
    assert verdict.reason is (Reason.OK if enough else Reason.GPU_REQUIRED)
