"""What Linux tells of one process: files of `/proc`, read and judged (proc(5)).

"No such process" alone is an end. Where a file cannot be read for another cause, nothing is
known of the process, and `ProcessUnreadable` is raised.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from companion_core.egress.interface import ProcessUnreadable

__all__ = [
    "PARENT",
    "SESSION",
    "command_line",
    "environment_is_set",
    "first_of_namespace",
    "has_memory",
    "lives",
    "read_entry",
    "require_means",
    "stat_fields",
    "thread_has_memory",
    "thread_with_memory",
    "threads_of",
]

# Fields of proc_pid_stat(5), counted from the state.
PARENT: Final = 1
SESSION: Final = 3
_THREADS, _MEMORY, _ENV_END = 17, 20, 48
_ZOMBIE_STATES: Final = frozenset({b"Z", b"X"})
_WITHOUT_MEANS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_READ_BYTES: Final = 4096
# The kernel fills a page where there is more to come (seq_file): less than half a page is all.
_SHORT_BYTES: Final = 2048


def lives(pid: int) -> bool:
    """Tell whether there is such a process and it has not ended.

    Raises:
        ProcessUnreadable: it may be there.
    """
    return stat_fields(str(pid)) is not None


def first_of_namespace(pid: int) -> int:
    """Return the first process of the process namespace that `pid` is in; 0 where it is in ours.

    Raises:
        ProcessUnreadable: the system does not tell.
    """
    while pid > 1:
        try:
            rows = read_entry(f"/proc/{pid}/status").decode(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        except OSError as error:
            raise ProcessUnreadable from error
        fields = {name: words.split() for name, _, words in (row.partition(":") for row in rows)}
        numbers = fields.get("NSpid", [])
        if len(numbers) <= 1:  # one number for each namespace that it is seen in, ours first
            return 0
        if numbers[-1] == "1":
            return pid
        pid = int(fields["PPid"][0])
    return 0


def environment_is_set(pid: int) -> bool:
    """Tell whether a process that shows no environment really has an empty one.

    Linux notes the environment's end when execve(2) is done; before that there is none yet.

    Raises:
        ProcessUnreadable: the system does not tell.
    """
    fields = stat_fields(str(pid))
    return fields is not None and int(fields[_ENV_END]) != 0


def has_memory(pid: int) -> bool:
    """Tell whether a process still has its memory, which it gives back first when it ends.

    From then on nobody but root may look into it. A first thread that has ended has no memory
    either while other threads go on, so each thread is asked. What the system hides counts as yes.

    Raises:
        ProcessUnreadable: no descriptor or memory is left to look with.
    """
    try:
        return thread_with_memory(pid) is not None
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError as error:
        require_means(error)
        return True


def thread_with_memory(pid: int) -> int | None:
    """Return a thread that shows the memory of a process; None where it has given it back.

    Nearly always that is its first one, the process itself.

    Raises:
        FileNotFoundError, ProcessLookupError: the process is gone.
        ProcessUnreadable: no descriptor or memory is left to look with.
        OSError: it cannot be read.
    """
    if thread_has_memory(pid):
        return pid
    return next((each for each in map(int, threads_of(pid)) if thread_has_memory(each)), None)


def thread_has_memory(thread: int) -> bool:
    """As `has_memory`, for one thread alone."""
    try:
        fields = stat_fields(str(thread))
    except ProcessUnreadable as error:
        require_means(error.__cause__)
        return True
    return fields is not None and int(fields[_MEMORY]) != 0


def require_means(error: BaseException | None) -> None:
    """Return where a look failed because of the process, and not for lack of means.

    Raises:
        ProcessUnreadable: no descriptor or memory was left, which says nothing of the process.
    """
    if isinstance(error, OSError) and error.errno in _WITHOUT_MEANS:
        raise ProcessUnreadable from error


def read_entry(path: str) -> bytes:
    """Return the content of a file in `/proc`, in half the time of `Path.read_bytes`.

    Raises:
        FileNotFoundError, ProcessLookupError: the process is gone.
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


def threads_of(pid: int) -> list[str]:
    """Return the numbers of its threads."""
    return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - only the names are needed


def stat_fields(pid: str) -> list[bytes] | None:
    """Return the fields of its stat file from the state on; None where no such process lives."""
    try:
        fields = read_entry(f"/proc/{pid}/stat").rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError) as error:
        raise ProcessUnreadable from error
    # A first thread that ended looks like a zombie while others of the process go on.
    ended = fields[0] in _ZOMBIE_STATES and int(fields[_THREADS]) <= 1
    return None if ended else fields


def command_line(pid: int) -> bytes:
    """Return its command line; nothing where the process is gone."""
    try:
        return read_entry(f"/proc/{pid}/cmdline")
    except (FileNotFoundError, ProcessLookupError):
        return b""
    except OSError as error:
        raise ProcessUnreadable from error
