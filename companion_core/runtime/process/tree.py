"""The processes below a runtime's keeper, and which of them is the runtime (I-08).

Read-only look-ups: on Linux in `/proc`, elsewhere through psutil. Only "no such process" is an
end; whatever else a look fails for raises `ProcessUnreadable`.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from companion_core.egress.interface import ProcessUnreadable
from companion_core.system.os_compat import user_id

__all__ = [
    "descendants",
    "environment_is_set",
    "has_memory",
    "lives",
    "read_entry",
    "require_means",
    "runtime_below",
    "thread_has_memory",
]

_ZOMBIE_STATES: Final = frozenset({b"Z", b"X"})
# Fields of proc_pid_stat(5), counted from the state.
_PARENT, _SESSION, _THREADS, _MEMORY, _ENV_END = 1, 3, 17, 20, 48
# Whoever ends while the kernel lists its siblings can hide one of them (proc(5)), and its own
# children become another's: all is listed again until it is as it was, so often at most.
_LOOKS: Final = 4
_WITHOUT_MEANS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_READ_BYTES: Final = 4096
# The kernel fills a page where there is more (seq_file): less than half of one is all.
_SHORT_BYTES: Final = 2048


def descendants(root: int) -> tuple[int, ...]:
    """Return the living processes below `root` or, its keeper gone, still in its session.

    Raises:
        ProcessUnreadable: one of them may be left out.
    """
    if sys.platform != "linux":
        return _descendants_elsewhere(root)
    found = _below([root])
    if not found.get(root):  # its children are another's, perhaps since before they were listed
        found |= _below(pid for pid, _, session in _living() if session == root)
    return tuple(pid for pid, alive in found.items() if alive and pid != root)


def runtime_below(started: int, programs: int) -> int | None:
    """Return the process that `programs` programs, one below the other, lead down to.

    A program may fork before it executes the next one: only a new command line counts.

    Args:
        started: the process of the first one.
        programs: how many to pass; the last of them is the runtime.

    Returns:
        None while it is not there yet.

    Raises:
        ProcessUnreadable: it may be there.
    """
    children = _lists().children
    pid, line = started, _command_line(started)
    while programs:
        below = next(iter(children(pid)), None)
        seen = b"" if below is None else _command_line(below)
        if below is None or not seen:
            return None
        if seen != line:
            programs -= 1
        pid, line = below, seen
    return pid


def lives(pid: int) -> bool:
    """Tell whether there is such a process, and it has not ended.

    Raises:
        ProcessUnreadable: it may be there.
    """
    return _stat(str(pid)) is not None


def environment_is_set(pid: int) -> bool:
    """Tell whether a process that shows no environment has an empty one, not none yet.

    Linux sets where it ends at the end of execve(2).

    Raises:
        ProcessUnreadable: it cannot be told.
    """
    fields = _stat(str(pid))
    return fields is not None and int(fields[_ENV_END]) != 0


def has_memory(pid: int) -> bool:
    """Tell whether a process has not begun to end: it gives its memory back first of all.

    From then on nobody but root may look into it. A first thread that ended has none either
    while others of the process go on, so each is asked. What the system hides counts as yes.

    Raises:
        ProcessUnreadable: there is nothing left to look with.
    """
    try:
        threads = _threads(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError as error:
        require_means(error)
        return True
    return any(thread_has_memory(int(thread)) for thread in threads)


def thread_has_memory(thread: int) -> bool:
    """As `has_memory`, of one thread alone."""
    try:
        fields = _stat(str(thread))
    except ProcessUnreadable as error:
        require_means(error.__cause__)
        return True
    return fields is not None and int(fields[_MEMORY]) != 0


def require_means(error: BaseException | None) -> None:
    """Go on with a look that failed for what the process is.

    Raises:
        ProcessUnreadable: there was nothing left to look with, which says nothing of it.
    """
    if isinstance(error, OSError) and error.errno in _WITHOUT_MEANS:
        raise ProcessUnreadable from error


def read_entry(path: str) -> bytes:
    """Return the content of a file in `/proc`; in half the time of `Path.read_bytes`.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process any more.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.read(descriptor, _READ_BYTES)
        if len(content) >= _SHORT_BYTES:
            parts = [content]
            while parts[-1]:
                parts.append(os.read(descriptor, _READ_BYTES))
            content = b"".join(parts)
    finally:
        os.close(descriptor)
    return content


def _below(roots: Iterable[int]) -> dict[int, bool]:
    """Return `roots` and all below them, those nearest to a root first, and whether each lives."""
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
        waiting = parents  # who had no child can be given none by those that ended meanwhile
    # What has ended has no children left: they became another's.
    return {pid: pid in parents or lives(pid) for pid in found}


class _Lists(Protocol):
    """Whose children are whose, as read once."""

    def children(self, pid: int) -> list[int]:
        """Return a process's children."""
        ...

    def are_as_read(self, pids: Iterable[int]) -> bool:
        """Tell whether those of `pids`, which have been read, are still the same."""
        ...


def _lists() -> _Lists:
    return _KernelLists() if _kernel_lists() else _EveryParent()


@functools.cache
def _kernel_lists() -> bool:
    return os.path.exists("/proc/thread-self/children")  # noqa: PTH110 - in half the time


class _KernelLists:
    """The kernel's own, of each thread."""

    def __init__(self) -> None:
        self._read: dict[int, dict[str, bytes]] = {}

    def children(self, pid: int) -> list[int]:
        """See `_Lists`."""
        read = self._read[pid] = {}
        for _ in range(_LOOKS):
            ended = False
            try:
                for thread in _threads(pid):
                    try:
                        read[thread] = _children(pid, thread)
                    except (FileNotFoundError, ProcessLookupError):
                        ended = True  # and has left its own to another thread
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
                self._read[pid].keys() == set(_threads(pid))
                and all(_children(pid, each) == below for each, below in self._read[pid].items())
                for pid in pids
            )
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError as error:
            raise ProcessUnreadable from error


def _threads(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names are all it takes


def _children(pid: int, thread: str) -> bytes:
    return read_entry(f"/proc/{pid}/task/{thread}/children")


class _EveryParent:
    """Where the kernel lists no children: the parent of everybody."""

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
    """Yield process, parent and session of everything that lives and may be the person's."""
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - as above
    except OSError as error:
        raise ProcessUnreadable from error
    for entry in filter(str.isdigit, entries):
        try:
            fields = _stat(entry)
        except ProcessUnreadable:
            if not _is_anothers(entry):
                raise
            continue
        if fields is not None:
            yield int(entry), int(fields[_PARENT]), int(fields[_SESSION])


def _is_anothers(pid: str) -> bool:
    """Tell whether a process is another person's, which proc(5) may hide (`hidepid`)."""
    try:
        return os.stat(f"/proc/{pid}").st_uid != user_id()  # noqa: PTH116 - as above
    except (FileNotFoundError, ProcessLookupError):
        return True  # nobody's any more
    except OSError:
        return False


def _stat(pid: str) -> list[bytes] | None:
    """Return the fields from the state on; None where no such process lives."""
    try:
        fields = read_entry(f"/proc/{pid}/stat").rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError) as error:
        raise ProcessUnreadable from error
    # A first thread that ended looks like a zombie while others of the process go on.
    ended = fields[0] in _ZOMBIE_STATES and int(fields[_THREADS]) <= 1
    return None if ended else fields


def _command_line(pid: int) -> bytes:
    try:
        return read_entry(f"/proc/{pid}/cmdline")
    except (FileNotFoundError, ProcessLookupError):
        return b""
    except OSError as error:
        raise ProcessUnreadable from error


def _descendants_elsewhere(root: int) -> tuple[int, ...]:
    import psutil  # noqa: PLC0415 - needed only where /proc is not

    try:
        return tuple(child.pid for child in psutil.Process(root).children(recursive=True))
    except psutil.NoSuchProcess:
        return ()
    except (psutil.Error, OSError) as error:
        raise ProcessUnreadable from error
