"""A command's connection to a running companion: a Unix socket, or a named pipe.

The system, not the peer, says which process is at the other end: see `peer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from companion_core.egress.unix_socket import listener_has_ended, peer_of

if TYPE_CHECKING:
    import socket

__all__ = ["ControlLink", "SocketLink"]


class ControlLink(Protocol):
    """Asks one question; every method raises `OSError` when the other end fails or is late."""

    def peer(self) -> tuple[int, int]:
        """Return pid and user at the other end; 0 and -1 if the system does not tell."""

    def ask(self, line: bytes, limit: int) -> bytes:
        """Send one line and return the answer's line, of `limit` bytes at most."""

    def close(self) -> None:
        """Close the connection."""


class SocketLink:
    """A connected Unix socket, with a timeout."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def peer(self) -> tuple[int, int]:
        """See `ControlLink`."""
        if listener_has_ended(self._connection):
            return 0, -1  # another process may have its number by now
        return peer_of(self._connection)

    def ask(self, line: bytes, limit: int) -> bytes:
        """See `ControlLink`."""
        self._connection.sendall(line)
        with self._connection.makefile("rb") as file:
            return file.readline(limit)

    def close(self) -> None:
        """See `ControlLink`."""
        self._connection.close()
