"""A foreign program on the port that a runtime was to have."""

from __future__ import annotations

import socket


def received_by(thief: socket.socket, seconds: float) -> bytes:
    """Return what the clients that have connected so far sent, each within `seconds`."""
    thief.settimeout(0)
    received = b""
    try:
        while True:
            with thief.accept()[0] as connection:
                connection.settimeout(seconds)
                received += connection.recv(4096)
    except BlockingIOError:
        return received
