"""A Unix socket in whose place another program may have put its own.

A connection follows no link, and the system says which process listens: see `connect(2)`,
`unix(7)` (SO_PEERCRED), and `sys/un.h` of macOS (LOCAL_PEERPID).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from companion_core.system.os_compat import NO_FOLLOW

if TYPE_CHECKING:
    import socket

__all__ = ["ForeignPeer", "address_of", "listener_has_ended", "make_private", "peer_of"]

_SO_PEERPIDFD: Final = 77  # since Linux 6.5; `socket` has no name for it
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 0x001, 0x002  # of macOS
_PATH_ALONE: Final[int] = getattr(os, "O_PATH", 0)
# The errors by which Linux says that a peer's process has ended; they differ by release.
_GONE: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENODATA})


class ForeignPeer(ConnectionRefusedError):
    """Another program's socket or process is there; nothing was sent to it."""


@contextlib.contextmanager
def address_of(path: str) -> Iterator[str]:
    """Yield an address of the very socket that `path` names now; a link is not followed.

    Raises:
        ForeignPeer: `path` names something that is no socket.
        OSError: `path` names nothing, or cannot be read.
    """
    if sys.platform != "linux":  # the peer's proof catches a link that comes in between
        _require_socket(os.lstat(path).st_mode)
        yield path
        return
    descriptor = os.open(path, _PATH_ALONE | NO_FOLLOW)
    try:
        _require_socket(os.fstat(descriptor).st_mode)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def make_private(path: str) -> None:
    """Let only the person connect to a socket; raises what `address_of` raises."""
    with address_of(path) as address:
        follow = sys.platform == "linux" or os.chmod not in os.supports_follow_symlinks
        os.chmod(address, 0o600, follow_symlinks=follow)  # noqa: PTH101 - `Path.chmod` takes twice the time


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid at the other end; 0 and -1 if the system does not tell.

    For the connecting side, Linux names the process that called listen(2), and macOS the last
    process that used the listener. The pid is 0 if it is not visible in this pid namespace.
    """
    import socket  # noqa: PLC0415 - a caller with a connection has it loaded
    import struct  # noqa: PLC0415 - loaded on first use

    if sys.platform == "linux":
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return pid, uid
    # struct xucred of macOS and the BSDs: {version, uid, ngroups, groups[16]}.
    raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, struct.calcsize("IIh16I"))
    uid = struct.unpack_from("II", raw)[1] if len(raw) >= struct.calcsize("II") else -1
    pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID) if sys.platform == "darwin" else 0
    return pid, uid


def listener_has_ended(connection: socket.socket) -> bool:
    """Return whether the process that `peer_of` names has ended; its pid may be reused then.

    False where the system does not tell (before Linux 6.5, macOS).

    Raises:
        OSError: this process has no descriptor left.
    """
    if sys.platform != "linux":
        return False
    import socket  # noqa: PLC0415 - a caller with a connection has it loaded

    try:
        process = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return False
        if error.errno in _GONE:
            return True
        raise
    try:
        ends = select.poll()
        ends.register(process, select.POLLIN)
        return bool(ends.poll(0))
    finally:
        os.close(process)


def _require_socket(mode: int) -> None:
    if not stat.S_ISSOCK(mode):
        raise ForeignPeer
