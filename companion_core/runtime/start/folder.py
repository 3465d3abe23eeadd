"""What one start needs on disk and as an address: its private folder and its channel."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Final

from companion_core.decisions.spawn_plan import MAX_UNIX_PATH
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.system.removal import remove_tree
from companion_core.system.state_files import private_folder

__all__ = ["choose_channel", "new_start_folder", "remove_start_folder"]

_SOCKET_NAME: Final = "backend.sock"  # llama-server takes a host that ends like this for a socket


def new_start_folder(run_dir: Path) -> Path:
    """Make the 0700 folder of one start, under a name that nobody could know in advance.

    Raises:
        Refused: `state_path_unsafe`.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    folder = private_folder(run_dir) / secrets.token_hex(4)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
    return folder


def remove_start_folder(folder: Path) -> None:
    """Remove the folder and all that the runtime left in it; what stays, a later start removes.

    Blocking: a runtime may have left more than the event loop can wait for.
    """
    remove_tree(folder)


def choose_channel(offered: frozenset[str], folder: Path) -> UnixChannel | TcpChannel:
    """Choose where the backend listens: a socket in `folder`, else a free loopback port (I-07).

    Raises:
        EnvironmentUnavailable: `spawn_failed` where neither is possible.
    """
    path = str(folder / _SOCKET_NAME)
    if "unix" in offered and len(os.fsencode(path)) <= MAX_UNIX_PATH.get(sys.platform, 0):
        return UnixChannel(path=path)
    if "tcp" not in offered:
        raise EnvironmentUnavailable(Reason.SPAWN_FAILED)
    # Another program may take the port before the runtime does. Then the runtime's tree does not
    # listen there, which is read back before any byte is sent, the key included.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        return TcpChannel(host="127.0.0.1", port=free.getsockname()[1])
