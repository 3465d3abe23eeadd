"""Where the runtime computes: told in the status, and required where the person requires it."""

from __future__ import annotations

import asyncio
from typing import Final

from companion_core.decisions.placement import Placement, check_placement
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime import PlacementWatch, StartedBackend
from companion_core.serving.runtime_words import PLACES
from companion_core.system.clock import recency_now

__all__ = ["placement_of", "require_placement"]

# A runtime says it about when it is ready; what it writes later, requests may have caused.
TOLD_SECONDS: Final = 1.0
SOON_SECONDS: Final = 0.05  # so long a start waits for it that does not depend on it


def placement_of(backend: StartedBackend) -> Placement:
    """Return where the model is, as far as it is known now."""
    return Placement.UNKNOWN if backend.placement is None else backend.placement.placement


async def require_placement(backend: StartedBackend, *, require_gpu: bool) -> None:
    """Wait a moment for the runtime's word, and require an accelerator where the person does.

    Raises:
        EnvironmentUnavailable: `gpu_required`.
    """
    watch = backend.placement
    if watch is not None:
        await _until_told(watch, TOLD_SECONDS if require_gpu else SOON_SECONDS)
        asyncio.get_running_loop().call_later(TOLD_SECONDS, watch.settle)
    placement = placement_of(backend)
    if not check_placement(placement, require_gpu=require_gpu).ok:
        raise EnvironmentUnavailable(Reason.GPU_REQUIRED, f"computed {PLACES[placement]}")


async def _until_told(watch: PlacementWatch, seconds: float) -> None:
    deadline = recency_now() + seconds
    while watch.is_awaited and recency_now() < deadline:  # noqa: ASYNC110 - a line, which is read soon
        await asyncio.sleep(SOON_SECONDS / 10)
