"""The processes below a runtime's keeper, and which of them is the runtime (I-08).

Read-only look-ups: on Linux in `/proc`, elsewhere through psutil. "No such process" alone is an
end; a look that fails for another cause raises `ProcessUnreadable`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.process.proc_files import (
    PARENT,
    SESSION,
    command_line,
    lives,
    read_entry,
    stat_fields,
    threads_of,
)
from companion_core.system.os_compat import user_id

__all__ = ["descendants", "runtime_below"]

# A process that ends while the kernel lists its siblings can hide one of them (proc(5)), and its
# own children get another parent. So everything is listed again until two lists agree, at most so
# many times.
_LOOKS: Final = 4


def descendants(root: int) -> tuple[int, ...]:
    """Return the living processes below `root` or, where that has ended, still in its session.

    Raises:
        ProcessUnreadable: one of them may be missing from the list.
    """
    if sys.platform != "linux":
        return _descendants_elsewhere(root)
    found = _below([root])
    if not found.get(root):  # it has ended, and its children may have had another parent by then
        found |= _below(pid for pid, _, session in _living() if session == root)
    return tuple(pid for pid, alive in found.items() if alive and pid != root)


def runtime_below(started: int, programs: int) -> int | None:
    """Return the runtime below a chain of programs, each of which starts the next one.

    A program may fork before it executes the next one, so only a new command line counts.

    Args:
        started: the process of the first program.
        programs: how many programs to pass on the way down to the runtime.

    Returns:
        None while it is not there yet.

    Raises:
        ProcessUnreadable: it may be there.
    """
    children = _lists().children
    pid, line = started, command_line(started)
    while programs:
        below = next(iter(children(pid)), None)
        seen = b"" if below is None else command_line(below)
        if below is None or not seen:
            return None
        if seen != line:
            programs -= 1
        pid, line = below, seen
    return pid


def _below(roots: Iterable[int]) -> dict[int, bool]:
    """Return `roots` and all below them, the nearest to a root first, and whether each lives."""
    found, parents = dict.fromkeys(roots), list[int]()
    waiting = list(found)
    for _ in range(_LOOKS):
        lists, parents = _lists(), []
        for pid in waiting:
            if below := lists.children(pid):
                parents.append(pid)
            new = [child for child in below if child not in found]
            found.update(dict.fromkeys(new))
            waiting += new
        if lists.are_as_read(parents):
            break
        waiting = parents  # a process without children inherits none from one that ended meanwhile
    # A process that has ended has no children left: they have another parent.
    return {pid: pid in parents or lives(pid) for pid in found}


class _Lists(Protocol):
    """Which processes are whose children, as read once."""

    def children(self, pid: int) -> list[int]:
        """Return a process's children."""
        ...

    def are_as_read(self, pids: Iterable[int]) -> bool:
        """Tell whether the children of `pids`, which were read before, are still the same."""
        ...


def _lists() -> _Lists:
    return _KernelLists() if _kernel_lists() else _EveryParent()


@functools.cache
def _kernel_lists() -> bool:
    return os.path.exists("/proc/thread-self/children")  # noqa: PTH110 - a Path takes twice the time


class _KernelLists:
    """The kernel's own lists, one for each thread."""

    def __init__(self) -> None:
        self._read: dict[int, dict[str, bytes]] = {}

    def children(self, pid: int) -> list[int]:
        """See `_Lists`."""
        read = self._read[pid] = {}
        for _ in range(_LOOKS):
            ended = False
            try:
                for thread in threads_of(pid):
                    try:
                        read[thread] = _children(pid, thread)
                    except (FileNotFoundError, ProcessLookupError):
                        ended = True  # the thread's children belong to another one now
            except (FileNotFoundError, ProcessLookupError):
                break  # the process has ended
            except OSError as error:
                raise ProcessUnreadable from error
            if not ended:
                break
        return list(dict.fromkeys(int(child) for below in read.values() for child in below.split()))

    def are_as_read(self, pids: Iterable[int]) -> bool:
        """See `_Lists`: the same threads have the same children."""
        try:
            return all(
                self._read[pid].keys() == set(threads_of(pid))
                and all(_children(pid, each) == below for each, below in self._read[pid].items())
                for pid in pids
            )
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError as error:
            raise ProcessUnreadable from error


def _children(pid: int, thread: str) -> bytes:
    return read_entry(f"/proc/{pid}/task/{thread}/children")


class _EveryParent:
    """The parent of every process, for kernels that do not list children."""

    def __init__(self) -> None:
        self._below: dict[int, list[int]] = {}
        for pid, parent, _ in _living():
            self._below.setdefault(parent, []).append(pid)

    def children(self, pid: int) -> list[int]:
        """See `_Lists`."""
        return self._below.get(pid, [])

    def are_as_read(self, pids: Iterable[int]) -> bool:
        """See `_Lists`."""
        now = _EveryParent()
        return all(now.children(pid) == self.children(pid) for pid in pids)


def _living() -> Iterator[tuple[int, int, int]]:
    """Yield process, parent and session of each living process that may be the person's."""
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - only the names are needed
    except OSError as error:
        raise ProcessUnreadable from error
    for entry in filter(str.isdigit, entries):
        try:
            fields = stat_fields(entry)
        except ProcessUnreadable:
            if not _is_anothers(entry):
                raise
            continue
        if fields is not None:
            yield int(entry), int(fields[PARENT]), int(fields[SESSION])


def _is_anothers(pid: str) -> bool:
    """Tell whether a process is another person's, which proc(5) may hide (`hidepid`)."""
    try:
        return os.stat(f"/proc/{pid}").st_uid != user_id()  # noqa: PTH116 - a Path takes twice the time
    except (FileNotFoundError, ProcessLookupError):
        return True  # it is gone
    except OSError:
        return False


def _descendants_elsewhere(root: int) -> tuple[int, ...]:
    import psutil  # noqa: PLC0415 - needed only on systems without /proc

    try:
        return tuple(child.pid for child in psutil.Process(root).children(recursive=True))
    except psutil.NoSuchProcess:
        return ()
    except (psutil.Error, OSError) as error:
        raise ProcessUnreadable from error
