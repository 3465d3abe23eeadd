"""Namespaces of the runtime's own, for the keeper, which stays outside where nothing reaches it.

The keeper loads this file, so it imports only the standard library and nothing of the package.
Kernel interfaces: namespaces(7), pid_namespaces(7), user_namespaces(7), clone(2).

The first process of a process namespace holds all that is in it: when it ends, however it ends,
the kernel kills the rest. So `fork_apart` makes it the keeper's own child, and `stand_first` lets
it do nothing but reap, and end when the runtime or the keeper does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from typing import Any

if sys.platform != "linux":
    raise ImportError("namespaces are Linux's")

__all__ = ["fork_apart", "stand_first"]

_CLONE = {"x86_64": 56, "aarch64": 220}
_NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NETWORK = 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_PR_SET_PDEATHSIG = 1
_MOST_DESCRIPTORS = 1 << 20


def fork_apart(*, network: bool) -> int:
    """Fork as fork(2) does, the child being first in new namespaces.

    Root needs no user namespace; anybody else gets one in which they are only themselves.

    Args:
        network: the network is new too, and has nothing in it.

    Returns:
        the child's process id, 0 in the child, -1 where the system grants no namespaces.
    """
    number = _CLONE.get(os.uname().machine)
    if number is None:
        return -1
    flags = _NEW_PID | _NEW_IPC | _NEW_UTS | (_NEW_NETWORK if network else 0) | signal.SIGCHLD
    user, group = os.geteuid(), os.getegid()
    # Without threads a bare clone(2) is a fork; PyDLL lets no other take the interpreter meanwhile.
    libc: Any = ctypes.PyDLL(None, use_errno=True)
    for added in (0, _NEW_USER) if user == 0 else (_NEW_USER,):
        child = int(libc.syscall(*map(ctypes.c_long, (number, flags | added, 0, 0, 0, 0))))
        if child == 0 and added:
            _map_identity(user, group)
        if child >= 0:
            return child
    return -1


def _map_identity(user: int, group: int) -> None:
    """Keep the own user and group inside; there are no others."""
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, content.encode())
        os.close(file)


def stand_first(report: int) -> None:
    """Fork the process that becomes the runtime, and return in it alone.

    The caller stays the first process of its namespaces. When the runtime ends it writes the
    runtime's wait status to `report` and ends too, and with it the kernel ends the rest.

    Args:
        report: the writing end of a pipe that the keeper reads.
    """
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    keeper = select.poll()
    keeper.register(report, 0)  # an error there: nobody reads
    if keeper.poll(0):
        os._exit(0)  # the keeper was gone before the signal was asked for
    signal.set_wakeup_fd(-1)
    runtime = os.fork()
    if runtime == 0:
        os.close(report)
        return
    try:
        os.closerange(0, report)
        os.closerange(report + 1, _MOST_DESCRIPTORS)
        ended = 0
        while ended != runtime:
            ended, status = os.waitpid(-1, 0)
        with contextlib.suppress(OSError):  # nobody is left to hear it
            os.write(report, str(status).encode())
    finally:
        os._exit(0)
