"""How many threads compute best: one for each core, as llama.cpp itself counts them.

Two hardware threads of one core share what computes, so a second thread there makes a model no
faster; a core that is left idle makes it slower by its share. Where a processor has fast and slow
cores the fast ones count alone: after each step all threads wait for the slowest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["physical_cores"]

_PROCESSORS: Final = Path("/sys/devices/system/cpu")
# Intel's processors of two kinds of cores have it; it lists the fast ones, such as "0-7,9".
_FAST: Final = Path("/sys/devices/cpu_core/cpus")


def physical_cores(processors: Path = _PROCESSORS, fast: Path = _FAST) -> int:
    """Return the number of cores that this process may use and that compute fast; at least 1."""
    if sys.platform == "darwin" and (count := _fast_cores_of_a_mac()) > 0:
        return count
    if sys.platform != "linux":
        import psutil  # noqa: PLC0415 - not needed on Linux, and slow to import

        return max(1, psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    cores = set()
    allowed = os.sched_getaffinity(0)
    usable = allowed & _listed(fast) or allowed
    for number in usable:
        siblings = processors / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:  # the system does not tell
            return max(1, len(usable))
    return max(1, len(cores))


def _listed(file: Path) -> set[int]:
    """Return the numbers in a list of the kernel's; none where there is no such file."""
    numbers: set[int] = set()
    try:
        for part in file.read_text().strip().split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return set()
    return numbers


def _fast_cores_of_a_mac() -> int:
    """Return how many performance cores there are; 0 where the system does not tell."""
    import ctypes  # noqa: PLC0415 - only here, and slow to import

    count, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except AttributeError:
        return 0
    failed = ask(
        b"hw.perflevel0.physicalcpu",
        ctypes.byref(count),
        ctypes.byref(size),
        None,
        ctypes.c_size_t(0),
    )
    return 0 if failed else count.value
