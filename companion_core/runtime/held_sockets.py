"""What of the sockets that a process of Linux holds listens: each is asked itself (I-07).

A socket that is taken over from a process (pidfd_getfd(2)) says what it is, whichever network
namespace it was made in, and no table of the machine's connections has to be walked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.socket_tables import plain_address

__all__ = ["listening_among"]

# Where system calls are numbered as everywhere (since Linux 5.6); elsewhere it is another one.
_MACHINES: Final = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "armv7l", "i686"})
_PIDFD_GETFD: Final = 438
_LINGER: Final = struct.Struct("ii")


def listening_among(
    pid: int, held: Mapping[int, int]
) -> tuple[frozenset[Listener], frozenset[int]]:
    """Return those of a process's sockets of TCP and UDP that listen, and which were not asked.

    While a socket is asked its owner can close it without an end: an epoll(7) of the owner's may
    tell of it once more.

    Args:
        pid: the process.
        held: the number of a descriptor, by the socket's inode.

    Returns:
        What listens, and the inodes of those that cannot be taken over or have moved.
    """
    if sys.platform != "linux":
        return frozenset(), frozenset(held)
    found, unasked = set[Listener](), set(held)
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return frozenset(), frozenset(held)
    try:
        for inode, number in held.items():
            with contextlib.suppress(OSError), _taken_over(process, number, inode) as taken:
                if (listener := _listener(taken)) is not None:
                    found.add(listener)
                unasked.discard(inode)
    finally:
        os.close(process)
    return frozenset(found), frozenset(unasked)


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


@contextlib.contextmanager
def _taken_over(process: int, number: int, inode: int) -> Iterator[socket.socket]:
    """Lend a socket of another process, which no program that is executed inherits."""
    # A default timeout would make it non-blocking, for its owner too.
    if platform.machine() not in _MACHINES or socket.getdefaulttimeout() is not None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    descriptor = _system_call()(_PIDFD_GETFD, process, number, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
    try:
        if os.fstat(descriptor).st_ino != inode:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield taken
    finally:
        _close(taken)


def _close(taken: socket.socket) -> None:
    """Close what was taken over; where that may wait (its owner chose to linger), elsewhere."""
    option = taken.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
    if _LINGER.unpack(option)[0]:
        threading.Thread(target=taken.close, daemon=True).start()
    else:
        taken.close()


@functools.cache
def _system_call() -> Callable[[int, int, int, int], int]:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 4, ctypes.c_long
    return call
