"""How many threads compute best: one for each core, as llama.cpp itself counts them.

Two hardware threads of one core share what computes, so a second thread there makes a model no
faster; a core that is left idle makes it slower by its share.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["physical_cores"]

_PROCESSORS: Final = Path("/sys/devices/system/cpu")


def physical_cores(processors: Path = _PROCESSORS) -> int:
    """Return the number of cores that this process may use; at least 1."""
    if sys.platform != "linux":
        import psutil  # noqa: PLC0415 - not needed on Linux, and slow to import

        return max(1, psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    cores = set()
    usable = os.sched_getaffinity(0)
    for number in usable:
        siblings = processors / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:  # the system does not tell
            return max(1, len(usable))
    return max(1, len(cores))
