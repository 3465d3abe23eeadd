"""End a tree that no namespace holds: freeze all of it, then kill it (I-08).

The keeper loads this file, so it imports only the standard library and nothing of the package.
A process that forks and ends faster than it is looked for stays ahead of a kill, so nothing is
killed before a whole look has found nothing that still runs. What cannot be read is no end: the
keeper calls again until the kernel says that it has no child left.
"""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["sweep"]

_LOOKS = 50


def sweep() -> None:
    """Stop every process below the calling one, and kill those that were found."""
    frozen: set[int] = set()
    for _ in range(_LOOKS):
        found = _below(os.getpid())
        new = found - frozen
        if not new:
            break
        for pid in new:
            _signal(pid, found, signal.SIGSTOP)
        frozen |= new
    for pid in frozen:
        _signal(pid, frozen, signal.SIGKILL)


def _below(root: int) -> set[int]:
    """Return what is below `root` and can be seen."""
    below: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):  # the caller asks again
        for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - pathlib is not loaded
            parent = _parent(int(name))
            if parent is not None:
                below.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    waiting = below.get(root, [])
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += below.get(pid, [])
    return found


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is not loaded
        return int(file.read().rsplit(b")", 1)[1].split()[1])
    return None


def _signal(pid: int, tree: set[int], number: int) -> None:
    """Signal the process only if it is of the tree still: its number may be another's by now."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _parent(pid) in {os.getpid(), *tree}:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
