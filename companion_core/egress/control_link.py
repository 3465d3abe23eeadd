"""One connection to a running companion, as a command holds it: a Unix socket, or a named pipe.

Who is at the other end is the system's word, not the peer's: see `peer`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

__all__ = ["ControlLink", "SocketLink", "peer_of"]


class ControlLink(Protocol):
    """Asks one question; every method raises `OSError` when the other end fails or is late."""

    def peer(self) -> tuple[int, int]:
        """Return pid and user at the other end; 0 and -1 for what the system does not tell."""

    def ask(self, line: bytes, limit: int) -> bytes:
        """Send one line and return the answer's line, of `limit` bytes at most."""

    def close(self) -> None:
        """Let go of the connection."""


class SocketLink:
    """A connected Unix socket, with a timeout."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def peer(self) -> tuple[int, int]:
        """See `ControlLink`."""
        return peer_of(self._connection)

    def ask(self, line: bytes, limit: int) -> bytes:
        """See `ControlLink`."""
        self._connection.sendall(line)
        with self._connection.makefile("rb") as file:
            return file.readline(limit)

    def close(self) -> None:
        """See `ControlLink`."""
        self._connection.close()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid at the other end; 0 and -1 for what the system does not tell."""
    import socket  # noqa: PLC0415 - who asks has it loaded
    import struct  # noqa: PLC0415 - as above

    if sys.platform == "linux":
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return pid, uid
    # LOCAL_PEERCRED of macOS and the BSDs: struct xucred {version, uid, ngroups, groups[16]}.
    raw = connection.getsockopt(0, 0x001, struct.calcsize("IIh16I"))
    uid = struct.unpack_from("II", raw)[1] if len(raw) >= struct.calcsize("II") else -1
    return 0, uid
