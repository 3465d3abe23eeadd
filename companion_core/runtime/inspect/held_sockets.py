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
from collections.abc import Callable, Mapping
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.inspect.socket_tables import plain_address

__all__ = ["listening_among"]

# Where system calls are numbered as everywhere (since Linux 5.6); elsewhere it is another one.
_MACHINES: Final = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "armv7l", "i686"})
_PIDFD_GETFD: Final = 438
_LINGER: Final = struct.Struct("ii")


def listening_among(
    pid: int, held: Mapping[int, tuple[int, str]]
) -> tuple[frozenset[Listener], frozenset[int]]:
    """Return those of a process's sockets of TCP and UDP that listen, and which were not asked.

    While a socket is asked its owner can close it without an end: an epoll(7) of the owner's may
    tell of it once more.

    Args:
        pid: the process.
        held: by the socket's inode, the number of a descriptor and its kind: tcp, tcp6, udp, udp6.

    Returns:
        What listens, and the inodes of those that cannot be taken over or have moved.
    """
    # A default timeout would make what is taken over non-blocking, for its owner too.
    call = _system_call() if socket.getdefaulttimeout() is None else None
    if sys.platform != "linux" or call is None:
        return frozenset(), frozenset(held)
    found, unasked = set[Listener](), set(held)
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return frozenset(), frozenset(held)
    try:
        for inode, (number, kind) in held.items():
            # Ours from now on, and no program that is executed inherits it.
            descriptor = call(_PIDFD_GETFD, process, number, 0)
            if descriptor < 0:
                continue
            if os.fstat(descriptor).st_ino != inode:
                os.close(descriptor)
                continue
            with contextlib.suppress(OSError):
                if (listener := _ask(descriptor, kind)) is not None:
                    found.add(listener)
                unasked.discard(inode)
    finally:
        os.close(process)
    return frozenset(found), frozenset(unasked)


def _ask(descriptor: int, kind: str) -> Listener | None:
    """Return where a socket listens, if it does; the descriptor is closed."""
    family = socket.AF_INET6 if kind.endswith("6") else socket.AF_INET
    streams = kind.startswith("tcp")
    taken = socket.socket(
        family, socket.SOCK_STREAM if streams else socket.SOCK_DGRAM, fileno=descriptor
    )
    talks = True
    try:
        if streams:
            talks = not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        else:
            talks = _has_peer(taken)  # one without a peer hears anyone
        if talks:
            return None
        host, port = taken.getsockname()[:2]
        return Listener(kind[:3], plain_address(host), port) if port else None
    finally:
        _close(taken, may_wait=streams and talks)


def _has_peer(taken: socket.socket) -> bool:
    try:
        taken.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _close(taken: socket.socket, *, may_wait: bool) -> None:
    """Close it; where that may wait, because its owner chose to linger, elsewhere."""
    if may_wait:
        option = taken.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
        if _LINGER.unpack(option)[0]:
            threading.Thread(target=taken.close, daemon=True).start()
            return
    taken.close()


@functools.cache
def _system_call() -> Callable[[int, int, int, int], int] | None:
    """Return what makes a system call; None where they may be numbered otherwise."""
    if platform.machine() not in _MACHINES:
        return None
    call = ctypes.CDLL(None).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 4, ctypes.c_long
    return call
