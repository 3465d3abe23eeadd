"""What lies unread in a socket: at the backend, as far as the system shows that, and here.

A request makes the model work, so it is sent again only if the backend cannot have read all of
the first copy. Linux shows that in these cases:

* A write failed with `EPIPE`: nobody can read these bytes.
* Bytes of it are still in this process, which then drops them (`abort`, never `close`).
* On a Unix socket: bytes lay in the backend's receive buffer when it closed. Our end then has
  `ECONNRESET` (unix(7)).

Bytes that lie there still (`SIOCOUTQ`) do not show it: a backend that has shut the connection
down can read them later. Nor does a reset on TCP, with an end of file before it or without: a
program can ask for one after it has read everything (`SO_LINGER`). Other systems show only the
first two.

All of this supposes a backend that takes what it reads from the buffer. One that looks at a
request with `MSG_PEEK` and works on it unread is not recognised.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import sys
from typing import Final

__all__ = ["has_unread", "left_unread", "never_read"]

_NOTHING = bytes(4)  # a C int
# Neither opens a descriptor, of which there may be few; `select` cannot tell of high ones.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


def has_unread(descriptor: int) -> bool:
    """Return whether bytes of the peer, or its end, wait in a socket of ours; never waits.

    Args:
        descriptor: of an open socket.
    """
    with _Selector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(0))


def never_read(transport: asyncio.Transport, error: Exception | None) -> bool | None:
    """Return whether the backend cannot have read all of what was written.

    Args:
        transport: of the connection that the backend ended. Where bytes are unwritten, the
            answer holds only if they are dropped.
        error: how it ended; None for an end of file.

    Returns:
        None where that may still be learned in a moment: the backend has shut the connection
        down, and can still read the rest or close.
    """
    if isinstance(error, BrokenPipeError):
        return True
    connection = transport.get_extra_info("socket")
    on_unix = sys.platform == "linux" and connection.family == socket.AF_UNIX
    if error is not None:
        return on_unix and isinstance(error, ConnectionResetError)
    if transport.get_write_buffer_size():
        return True
    if not on_unix:
        return False
    # The bytes first: closing sets the error before it drops them.
    unread = _in_kernel(connection.fileno())
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET:
        return True
    return None if unread else False


def left_unread(transport: asyncio.Transport, descriptor: int) -> bool:
    """Return whether bytes of a request are on their way although its answer has ended.

    On TCP the bytes that the backend's system has acknowledged are not among them, read or not.

    Args:
        transport: of an open connection.
        descriptor: of its socket.
    """
    return _in_kernel(descriptor) or transport.get_write_buffer_size() > 0


if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ  # one number with SIOCOUTQ (unix(7), tcp(7))

    def _in_kernel(descriptor: int) -> bool:
        return ioctl(descriptor, TIOCOUTQ, _NOTHING) != _NOTHING

else:

    def _in_kernel(descriptor: int) -> bool:
        del descriptor
        return False
