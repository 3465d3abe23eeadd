"""A start waits a moment for its runtime's word; without a required accelerator it is refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.decisions.placement import Placement
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime import PlacementWatch
from companion_core.serving import placement
from companion_core.serving.placement import placement_of, require_placement

pytestmark = pytest.mark.unit

TEXT = "{placed} layers"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "TOLD_SECONDS", 0.05)
    monkeypatch.setattr(placement, "SOON_SECONDS", 0.01)


def started(*texts: str, says: str = "", reaches_gpu: bool = True) -> Any:
    watch = PlacementWatch(texts, reaches_gpu=reaches_gpu)
    if says:
        asyncio.get_running_loop().call_later(0.005, watch.heed, says)
    return SimpleNamespace(placement=watch)


@pytest.mark.parametrize("require_gpu", [True, False])
def test_a_word_that_comes_right_after_readiness_counts(require_gpu) -> None:
    async def life() -> Placement:
        backend = started(TEXT, says="7 layers")
        await require_placement(backend, require_gpu=require_gpu)
        return placement_of(backend)

    assert asyncio.run(life()) is Placement.GPU


def test_what_is_written_later_does_not_count() -> None:
    async def life() -> Placement:
        backend = started(TEXT, says="0 layers")
        await require_placement(backend, require_gpu=False)
        await asyncio.sleep(0.1)
        backend.placement.heed("7 layers")  # as a request had it write
        return placement_of(backend)

    assert asyncio.run(life()) is Placement.CPU


@pytest.mark.parametrize(
    ("texts", "says", "reaches_gpu", "told"),
    [
        ((TEXT,), "0 layers", True, "computed on the processor"),
        ((TEXT,), "7 layers", False, "computed on the processor"),
        ((TEXT,), "", True, "computed where the runtime does not say"),
        ((), "7 layers", True, "computed where the runtime does not say"),
    ],
)
def test_without_a_known_accelerator_a_start_that_requires_one_is_refused(
    texts, says, reaches_gpu, told
) -> None:
    async def life() -> None:
        backend = started(*texts, says=says, reaches_gpu=reaches_gpu)
        await require_placement(backend, require_gpu=True)

    with pytest.raises(EnvironmentUnavailable) as caught:
        asyncio.run(life())
    assert (caught.value.reason, caught.value.detail) == (Reason.GPU_REQUIRED, told)


def test_a_start_that_requires_none_goes_on_without_a_word() -> None:
    async def life() -> Placement:
        backend = started(TEXT)
        await require_placement(backend, require_gpu=False)
        return placement_of(backend)

    assert asyncio.run(life()) is Placement.UNKNOWN
