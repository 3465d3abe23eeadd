"""How much memory a new runtime could have now: of this machine, and of this container."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["available_memory"]

_CGROUP: Final = Path("/sys/fs/cgroup")


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return bytes that can be had without swapping, within the cgroup's own limit if any."""
    import psutil  # noqa: PLC0415 - asked once per start

    free = int(psutil.virtual_memory().available)
    try:  # cgroup v2; a container sees its own as the root
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        rows = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = int(rows.get("inactive_file", 0))  # given back when asked for
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used + cached))
