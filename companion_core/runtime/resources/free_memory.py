"""How much memory a new runtime could get now, and whether a model fits into it (I-12)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from companion_core.decisions.resources import check_memory
from companion_core.errors import error_for
from companion_core.models.store import VerifiedModel
from companion_core.providers import ProbeFailed, ResourceLimits
from companion_core.runtime.resources.probe import free_vram
from companion_core.system.memory import machine_memory

__all__ = ["available_memory", "require_memory"]

_CGROUP: Final = Path("/sys/fs/cgroup")


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return the bytes that are available without swapping, within a container's limit if any."""
    free = machine_memory().available
    try:  # cgroup v2; a container sees its own as the root
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        rows = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = int(rows.get("inactive_file", 0))  # the kernel gives it back when memory is needed
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used + cached))


async def require_memory(
    model: VerifiedModel, limits: ResourceLimits, *, free: int | None = None
) -> None:
    """Require that a model fits below the ceilings and into what is free.

    Args:
        model: the model that is to be loaded.
        limits: the ceilings.
        free: bytes to count as free; what is free now where it is not given.

    Raises:
        CompanionError: the reason of `check_memory`, such as `ram_over_limit`.
    """
    needed = sum(file.size for file in model.files)
    if free is None:
        free = await asyncio.to_thread(available_memory)
    try:
        video = await asyncio.to_thread(free_vram)
    except ProbeFailed:
        video = 0
    verdict = check_memory(needed, free, video, limits)
    if not verdict.ok:
        raise error_for(verdict.reason)
