from __future__ import annotations

import sys

import pytest

from companion_core.decisions.placement import Placement
from companion_core.runtime.start.placement import PlacementWatch, has_accelerator

pytestmark = pytest.mark.unit

TEXTS = ("offloaded {placed}/{all} layers to GPU",)


def test_the_last_word_of_the_start_counts_and_none_after_it() -> None:
    watch = PlacementWatch(TEXTS, reaches_gpu=True)
    assert (watch.placement, watch.is_awaited) == (Placement.UNKNOWN, True)
    watch.heed("offloaded 25/25 layers to GPU")
    watch.heed("retrying with fewer layers")
    watch.heed("offloaded 0/25 layers to GPU")
    assert (watch.placement, watch.is_awaited) == (Placement.CPU, False)
    watch.settle()
    watch.heed("offloaded 25/25 layers to GPU")  # what a request had it write
    assert watch.placement is Placement.CPU


@pytest.mark.parametrize(("texts", "reaches_gpu"), [((), True), (TEXTS, False)])
def test_nothing_is_awaited_where_nothing_is_said_or_nothing_depends_on_it(
    texts, reaches_gpu
) -> None:
    assert not PlacementWatch(texts, reaches_gpu=reaches_gpu).is_awaited


@pytest.mark.parametrize(
    ("device", "there"),
    [("nvidia0", True), ("kfd", True), ("dri/renderD128", True), ("dri/card0", False)],
)
def test_linux_shows_its_accelerators_as_devices(monkeypatch, tmp_path, device, there) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert not has_accelerator(tmp_path)
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert has_accelerator(tmp_path) is there


def test_other_systems_do_not_tell_in_advance(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert has_accelerator(tmp_path)
