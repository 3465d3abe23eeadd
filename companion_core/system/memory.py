"""How much memory the machine has, and how much of that can be had without swapping."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["MachineMemory", "machine_memory"]

_MEMINFO: Final = Path("/proc/meminfo")
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """In bytes."""

    total: int
    available: int


def machine_memory(meminfo: Path = _MEMINFO) -> MachineMemory:
    """Return it as proc(5) has it; elsewhere, and where that does not tell, as psutil finds it."""
    if sys.platform == "linux":
        try:
            rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
            total, available = (
                int(rows[name].removesuffix("kB")) * _KIB for name in ("MemTotal", "MemAvailable")
            )
        except (OSError, KeyError, ValueError):
            pass
        else:
            return MachineMemory(total=total, available=available)
    import psutil  # noqa: PLC0415 - not needed on Linux, and slow to import

    found = psutil.virtual_memory()
    return MachineMemory(total=int(found.total), available=int(found.available))
