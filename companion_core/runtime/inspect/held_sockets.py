"""Which of the sockets that a process of Linux has open listen: each is asked itself (I-07).

A duplicate of the socket (pidfd_getfd(2)) tells, whichever network namespace the socket was made
in, and the kernel does not have to walk every connection of the machine. It also tells whether
that is the companion's network: a listener in another one leaves the port free in ours.
"""

from __future__ import annotations

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
from companion_core.runtime.inspect.socket_tables import (
    abstract_name,
    listening_sockets,
    plain_address,
)
from companion_core.runtime.process.proc_files import require_means

__all__ = ["listening_among"]

# Machines on which the system call has its common number (since Linux 5.6).
_MACHINES: Final = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "armv7l", "i686"})
_PIDFD_GETFD: Final = 438
_LINGER: Final = struct.Struct("ii")
_SO_NETNS_COOKIE: Final = 71  # since Linux 5.14; `socket` has no name for it
_COOKIE_BYTES: Final = 8


def listening_among(
    pid: int, sockets: Mapping[int, tuple[int, str]]
) -> tuple[frozenset[Listener], frozenset[int]]:
    """Return where a process's sockets listen, and which sockets were not asked.

    A socket that its owner closes meanwhile stays open until it was asked: an epoll(7) of the
    owner's may report it once more.

    Args:
        pid: the process.
        sockets: by the socket's inode, a descriptor's number and the kind: tcp, tcp6, udp, udp6 or
            unix, of which those with an abstract name in the companion's network count.

    Returns:
        Where they listen, and the inodes of those that could not be duplicated or have moved.

    Raises:
        ProcessUnreadable: no descriptor or memory is left to look with.
    """
    # With a default timeout Python would set the socket to non-blocking, for its owner too.
    call = _system_call() if socket.getdefaulttimeout() is None else None
    if sys.platform != "linux" or call is None:
        return frozenset(), frozenset(sockets)
    found, unasked = set[Listener](), set(sockets)
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        require_means(error)
        return frozenset(), frozenset(sockets)
    try:
        for inode, (number, kind) in sockets.items():
            # The duplicate closes on exec: no program that we start inherits it.
            descriptor = call(_PIDFD_GETFD, process, number, 0)
            if descriptor < 0:
                require_means(OSError(ctypes.get_errno(), "pidfd_getfd"))
                continue
            if os.fstat(descriptor).st_ino != inode:
                os.close(descriptor)
                continue
            try:
                listener = _ask(descriptor, kind, inode)
            except OSError as error:
                require_means(error)
                continue
            unasked.discard(inode)
            if listener is not None:
                found.add(listener)
    finally:
        os.close(process)
    return frozenset(found), frozenset(unasked)


def _ask(descriptor: int, kind: str, inode: int) -> Listener | None:
    """Return where a socket listens, or None; closes the descriptor."""
    if kind == "unix":
        return _ask_unix(descriptor, inode)
    family = socket.AF_INET6 if kind.endswith("6") else socket.AF_INET
    streams = kind.startswith("tcp")
    type_ = socket.SOCK_STREAM if streams else socket.SOCK_DGRAM
    try:
        taken = socket.socket(family, type_, fileno=descriptor)
    except OSError:  # then it is not taken
        os.close(descriptor)
        raise
    talks = True
    try:
        if streams:
            talks = not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        else:
            talks = _has_peer(taken)  # a socket without a peer hears anyone
        if talks:
            return None
        host, port = taken.getsockname()[:2]
        if not port:
            return None
        other = _is_of_another_network(taken, kind, inode)
        return Listener(kind[:3], plain_address(host), port, other_network=other)
    finally:
        _close(taken, may_wait=streams and talks)


def _ask_unix(descriptor: int, inode: int) -> Listener | None:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:  # then it is not taken
        os.close(descriptor)
        raise
    with taken:
        name = taken.getsockname()
        if not isinstance(name, bytes) or not name:  # it has a file, or no name
            return None
        if taken.type == socket.SOCK_DGRAM:
            talks = _has_peer(taken)
        else:
            talks = not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if talks or _is_of_another_network(taken, "unix", inode):
            return None
        return Listener("unix", abstract_name(name), 0)


def _is_of_another_network(taken: socket.socket, kind: str, inode: int) -> bool:
    """Tell whether a socket that listens was made in another network than the companion's."""
    ours = _our_network()
    if ours is None:  # what is ours is in our tables
        return not any(listening_sockets(os.getpid(), (kind,), {inode}))
    return taken.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES) != ours


@functools.cache
def _our_network() -> bytes | None:
    """Return the kernel's number of the companion's network; None where it has none to tell.

    No other network has it until the system is started again, and it is the same in each process.

    Raises:
        OSError: no descriptor or memory is left to look with.
    """
    with socket.socket(socket.AF_INET) as own:
        try:
            return own.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
        except OSError:
            return None


def _has_peer(taken: socket.socket) -> bool:
    try:
        taken.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _close(taken: socket.socket, *, may_wait: bool) -> None:
    """Close it; in a thread where that may block because its owner chose to linger."""
    if may_wait:
        option = taken.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
        if _LINGER.unpack(option)[0]:
            threading.Thread(target=taken.close, daemon=True).start()
            return
    taken.close()


@functools.cache
def _system_call() -> Callable[[int, int, int, int], int] | None:
    """Return a function that makes a system call and keeps errno; None where numbers may differ."""
    if platform.machine() not in _MACHINES:
        return None
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes, call.restype = (ctypes.c_long,) * 4, ctypes.c_long
    return call
