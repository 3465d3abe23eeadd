"""Heeds what a runtime says while it starts of where it places the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from companion_core.decisions.placement import Placement, judge_placement, read_placement

__all__ = ["PlacementWatch", "has_accelerator"]


class PlacementWatch:
    """What one start has said of it; later lines, which requests cause, no longer count.

    Args:
        texts: that the plan names.
        reaches_gpu: the machine has an accelerator, and the plan leaves it reachable.
    """

    def __init__(self, texts: Sequence[str], *, reaches_gpu: bool) -> None:
        self._texts = tuple(texts)
        self._reaches_gpu = reaches_gpu
        self._told: Placement | None = None
        self._settled = False

    @property
    def is_awaited(self) -> bool:
        """Whether the runtime may say it yet, and nothing is known without its word."""
        return self._reaches_gpu and self._told is None and bool(self._texts)

    def heed(self, line: str) -> None:
        """Take one line of the runtime's output; of several that tell, the last one counts."""
        if self._settled or not self._texts:
            return
        told = read_placement(self._texts, line)
        if told is not None:
            self._told = told

    def settle(self) -> None:
        """Heed nothing any more: what the runtime writes now, requests may have caused."""
        self._settled = True

    @property
    def placement(self) -> Placement:
        """Where the model is, as far as it is known now."""
        return judge_placement(self._told, reaches_gpu=self._reaches_gpu)


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Tell whether the machine may have an accelerator; only Linux tells of it in advance."""
    if sys.platform != "linux":
        return True
    return any(
        next(devices.glob(name), None) is not None
        for name in ("nvidia[0-9]*", "nvidiactl", "kfd", "dri/renderD*", "dxg")
    )
