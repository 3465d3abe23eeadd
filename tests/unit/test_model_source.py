"""Who wants to write to a held model: at once where nothing runs, else when that has ended."""

from __future__ import annotations

import pytest
from swap_parts import held_model

from companion_core.errors import Reason, Refused
from companion_core.model_source import HeldModel

pytestmark = pytest.mark.unit


def test_what_no_runtime_has_open_is_let_go_of_at_once() -> None:
    log: list[str] = []
    held = held_model("m", log)
    held.leases._on_break()
    assert held.wanted.is_set()
    assert held.closed
    assert log == ["let go of m"]


def test_what_a_runtime_has_open_is_only_marked() -> None:
    log: list[str] = []
    held = held_model("m", log)
    held.in_use = True
    held.leases._on_break()
    assert held.wanted.is_set()
    assert not held.closed
    assert log == []


def test_before_the_proof_it_is_the_proof_that_fails() -> None:
    held = HeldModel()
    held.leases._on_break()
    assert not held.wanted.is_set()
    with pytest.raises(Refused) as caught:
        _ = held.model
    assert caught.value.reason is Reason.NOT_VERIFIED
    held.close()
    assert held.closed
