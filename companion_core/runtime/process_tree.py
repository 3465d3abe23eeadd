"""The processes below a runtime's keeper, and which of them is the runtime (I-08).

Read-only look-ups: on Linux in `/proc`, elsewhere through psutil. Only "no such process" is an
end; whatever else a look fails for raises `ProcessUnreadable`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from companion_core.egress import ProcessUnreadable
from companion_core.portable import user_id

__all__ = [
    "descendants",
    "environment_is_set",
    "has_memory",
    "lives",
    "read_entry",
    "runtime_below",
    "thread_has_memory",
]

_ZOMBIE_STATES: Final = frozenset({b"Z", b"X"})
# Fields of proc_pid_stat(5), counted from the state.
_PARENT, _SESSION, _THREADS, _MEMORY, _ENV_END = 1, 3, 17, 20, 48
# Whoever ends while the kernel lists its siblings can hide one of them (proc(5)), and its own
# children become another's: all is listed again until nobody new is found, so often at most.
_LOOKS: Final = 4
_READ_BYTES: Final = 65536


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
    children = _lister(kernel_lists=_kernel_lists())
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
    while others of the process go on, so each is asked. What cannot be said counts as yes.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names are all it takes
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return any(thread_has_memory(int(thread)) for thread in threads)


def thread_has_memory(thread: int) -> bool:
    """As `has_memory`, of one thread alone."""
    try:
        fields = _stat(str(thread))
    except ProcessUnreadable:
        return True
    return fields is not None and int(fields[_MEMORY]) != 0


def read_entry(path: str) -> bytes:
    """Return the content of a file in `/proc`; in half the time of `Path.read_bytes`.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process any more.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(descriptor, _READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(descriptor, _READ_BYTES))
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _below(roots: Iterable[int]) -> dict[int, bool]:
    """Return `roots` and all below them, those nearest to a root first, and whether each lives."""
    found, kernel_lists, parents = dict.fromkeys(roots), _kernel_lists(), list[int]()
    waiting = list(found)
    for _ in range(_LOOKS):
        children, parents, known = _lister(kernel_lists=kernel_lists), [], len(found)
        for pid in waiting:
            if below := children(pid):
                parents.append(pid)
            new = [child for child in below if child not in found]
            found.update(dict.fromkeys(new))
            waiting += new
        if len(found) == known:
            break
        waiting = parents  # who had no child can be given none by those that ended meanwhile
    # What has ended has no children left: they became another's.
    return {pid: pid in parents or lives(pid) for pid in found}


@functools.cache
def _kernel_lists() -> bool:
    return os.path.exists("/proc/thread-self/children")  # noqa: PTH110 - in half the time


def _lister(*, kernel_lists: bool) -> Callable[[int], list[int]]:
    """Return what lists a process's children: the kernel or, where it does not, everybody."""
    if kernel_lists:
        return _children
    table: dict[int, list[int]] = {}
    for pid, parent, _ in _living():
        table.setdefault(parent, []).append(pid)
    return lambda pid: table.get(pid, [])


def _children(pid: int) -> list[int]:
    folder, found = f"/proc/{pid}/task", dict[int, None]()
    for _ in range(_LOOKS):
        ended = False
        try:
            for thread in os.listdir(folder):  # noqa: PTH208 - names are all it takes
                try:
                    below = read_entry(f"{folder}/{thread}/children")
                except (FileNotFoundError, ProcessLookupError):
                    ended = True  # and has left its own to another thread
                else:
                    found.update(dict.fromkeys(map(int, below.split())))
        except (FileNotFoundError, ProcessLookupError):
            break  # the process has ended
        except OSError as error:
            raise ProcessUnreadable from error
        if not ended:
            break
    return list(found)


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
