"""A Unix socket that its owner alone can connect to."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

__all__ = ["listen_owner_only"]


def listen_owner_only(path: Path) -> socket.socket:
    """Return a listener at `path`; what is there goes. It does not block.

    Args:
        path: in a folder of the owner's alone, where no other program of theirs listens.

    Raises:
        OSError: the socket cannot be made, or the system has none.
    """
    if sys.platform == "win32":
        raise OSError("Windows has no owner-only sockets")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        listener.settimeout(0)
    except OSError:
        listener.close()
        raise
    return listener
