"""Memory that no single process shows whole: shared memory, and files that lie in memory (I-12).

A process's resident memory leaves out what it has shared and not touched since, what it holds by a
descriptor alone (memfd_create(2)), and what lies in a temporary file system. Each of these is
counted once, however many processes share it. Linux only, read from `/proc` (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from typing import Final

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.inspect.descriptor_tables import table_holders
from companion_core.runtime.process.proc_files import thread_with_memory
from companion_core.system.os_compat import CLOSE_ON_EXEC

__all__ = ["shared_bytes"]

_BLOCK: Final = 512  # what stat(2) counts blocks in
# In a mount namespace of the runtime's own these are file systems of its own, in memory.
_TEMPORARY: Final = ("/tmp", "/dev/shm")  # noqa: S108 - looked at, not used
# Addresses, permissions, offset, device, inode and name of one mapping.
_MAPPING: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ...s \S+ (\S+) (\d+) +(/dev/zero|/memfd:|/SYSV|/anon_hugepage)"
)
_IN_MEMORY: Final = ("/memfd:", "/dev/zero (deleted)", "/anon_hugepage")
_READ_BYTES: Final = 1 << 20

_Found = dict[tuple[str, int], int]


def shared_bytes(pids: Iterable[int]) -> int:
    """Return what the processes share or keep in memory without showing it, each part once.

    What a descriptor leads to is counted as the kernel has it. Of what is mapped alone the whole
    length is counted: nobody but root is told how much of it has been filled. A process that has
    ended, or may not be looked into, adds nothing.
    """
    if sys.platform != "linux":
        return 0
    objects: _Found = {}
    mounts: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError, ProcessUnreadable):
            shown_by = thread_with_memory(pid) or pid  # the first thread may have ended
            with contextlib.suppress(OSError):
                _add_temporary(shown_by, mounts)
            with contextlib.suppress(OSError):
                _add_mapped(shown_by, objects)
        with contextlib.suppress(OSError):
            for holder in table_holders(pid):
                with contextlib.suppress(OSError):
                    _add_opened(holder, objects)
    return sum(objects.values()) + sum(mounts.values())


def _add_opened(pid: int, found: _Found) -> None:
    if sys.platform == "win32":
        return
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - read for each observation: in half the time
        with contextlib.suppress(OSError):
            path = f"{folder}/{name}"
            if os.readlink(path).startswith(_IN_MEMORY):  # noqa: PTH115 - as in the line above
                status = os.stat(path)  # noqa: PTH116 - as in the line above
                device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
                found[device, status.st_ino] = status.st_blocks * _BLOCK


def _add_mapped(pid: int, found: _Found) -> None:
    parts = []
    descriptor = os.open(f"/proc/{pid}/maps", os.O_RDONLY | CLOSE_ON_EXEC)
    try:
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    lengths: _Found = {}
    for first, last, device, inode, _ in _MAPPING.findall(b"".join(parts)):
        key = (device.decode(), int(inode))
        lengths[key] = lengths.get(key, 0) + int(last, 16) - int(first, 16)
    for key, length in lengths.items():
        found.setdefault(key, length)


def _add_temporary(pid: int, found: dict[int, int]) -> None:
    if sys.platform == "win32":
        return
    if os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino:  # noqa: PTH116 - for each observation
        return
    for path in _TEMPORARY:
        place = f"/proc/{pid}/root{path}"
        device = os.stat(place).st_dev  # noqa: PTH116 - for each observation
        if device != os.stat(f"/proc/{pid}/root").st_dev and device not in found:  # noqa: PTH116 - for each observation
            room = os.statvfs(place)
            found[device] = (room.f_blocks - room.f_bfree) * room.f_frsize
