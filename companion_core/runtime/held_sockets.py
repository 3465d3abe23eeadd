"""What of the sockets that a process of Linux holds listens: each is asked itself (I-07).

A socket that is taken over from a process (pidfd_getfd(2)) says what it is, whichever network
namespace it was made in, and no table of the machine's connections has to be walked.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.socket_tables import plain_address

__all__ = ["listening_among"]

_PIDFD_GETFD: Final = 438  # on every architecture


def listening_among(pid: int, held: Mapping[int, int]) -> frozenset[Listener]:
    """Return those of a process's sockets of TCP and UDP that listen.

    Args:
        pid: the process.
        held: the number of a descriptor, by the socket's inode.

    Raises:
        OSError: one of them cannot be taken over, or its number is another one's by now.
    """
    # A default timeout would make every socket that is taken over non-blocking, for its owner too.
    if sys.platform != "linux" or socket.getdefaulttimeout() is not None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    found: set[Listener] = set()
    process = os.pidfd_open(pid)
    try:
        for inode, number in held.items():
            with _taken_over(process, number, inode) as taken:
                if (listener := _listener(taken)) is not None:
                    found.add(listener)
    finally:
        os.close(process)
    return frozenset(found)


def _listener(taken: socket.socket) -> Listener | None:
    if taken.type == socket.SOCK_STREAM:
        protocol = "tcp" if taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else None
    else:
        protocol = None if _has_peer(taken) else "udp"  # one without a peer hears anyone
    host, port = taken.getsockname()[:2]
    return Listener(protocol, plain_address(host), port) if protocol and port else None


def _has_peer(taken: socket.socket) -> bool:
    try:
        taken.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _taken_over(process: int, number: int, inode: int) -> socket.socket:
    """Return a socket of another process as ours, which no program that is executed inherits."""
    descriptor = _system_call()(_PIDFD_GETFD, process, number, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if os.fstat(descriptor).st_ino == inode:
        return taken
    taken.close()
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


@functools.cache
def _system_call() -> Callable[[int, int, int, int], int]:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 4, ctypes.c_long
    return call
