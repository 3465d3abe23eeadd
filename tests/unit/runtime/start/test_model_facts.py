"""The context of a start is what fits into free memory, within the ceilings."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import runtime_parts

from companion_core.decisions.gguf import GgufHead
from companion_core.providers import ProbeFailed, ResourceLimits
from companion_core.runtime.start import model_facts
from companion_core.runtime.start.model_facts import look_at_model

pytestmark = pytest.mark.unit

GIB = 2**30
OWN = 131072
# 4 layers of 8 heads of 128 numbers, keys and values, at two bytes each.
TOKEN = 4 * 8 * 2 * 128 * 2
HEAD = GgufHead(
    version=3,
    tensors=0,
    fields=MappingProxyType(
        {
            "general.architecture": "llama",
            "llama.context_length": OWN,
            "llama.embedding_length": 1024,
            "llama.block_count": 4,
            "llama.attention.head_count": 8,
        }
    ),
    numbers=MappingProxyType({}),
    lengths=MappingProxyType({}),
    data_ends=None,
    complete=True,
)


@pytest.fixture
def look(tmp_path, monkeypatch) -> Any:
    file = tmp_path / "long.gguf"
    file.write_bytes(b"GGUF")
    model = runtime_parts.verified_model(file)
    monkeypatch.setattr(model_facts, "parse_gguf", lambda _data: HEAD)

    def found(free: int, *, ceiling: int = 2**40, configured: int | None = None) -> Any:
        monkeypatch.setattr(model_facts, "available_memory", lambda: free)
        limits = ResourceLimits(max_ram_bytes=ceiling, max_vram_bytes=None, max_cpu_percent=100)
        return look_at_model(model, limits, places=2, configured=configured)

    monkeypatch.setattr(model_facts, "free_vram", lambda: 0)
    yield found
    model.close()


def test_with_room_it_is_the_models_own(look) -> None:
    facts = look(64 * GIB)
    assert (facts.fit.context, facts.fit.shortened, facts.longest) == (OWN, False, OWN)


@pytest.mark.parametrize(("free", "ceiling"), [(3 * GIB, 64 * GIB), (64 * GIB, 3 * GIB)])
def test_it_is_what_fits_into_what_is_free_and_below_the_ceiling(look, free, ceiling) -> None:
    facts = look(free, ceiling=ceiling)
    assert facts.fit.shortened
    assert facts.fit.available == 3 * GIB
    assert facts.fit.context % 256 == 0
    assert 0.4 * 3 * GIB < facts.fit.context * 2 * TOKEN < 0.5 * 3 * GIB


def test_what_is_configured_counts_up_to_the_models_own(look) -> None:
    assert look(3 * GIB, configured=700).fit.context == 700
    assert look(3 * GIB, configured=2 * OWN).fit.context == OWN


def test_a_driver_that_does_not_answer_leaves_ordinary_memory(look, monkeypatch) -> None:
    def fail() -> int:
        raise ProbeFailed

    monkeypatch.setattr(model_facts, "free_vram", fail)
    assert look(3 * GIB).fit.available == 3 * GIB
    monkeypatch.setattr(model_facts, "free_vram", lambda: 8 * GIB)
    assert look(3 * GIB).fit.available == 8 * GIB
