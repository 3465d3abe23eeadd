"""Whether a backend that closed can have read a request: asked before it is sent again.

A request makes the model work, so it is sent twice only if the first copy was certainly not
read in full. What Linux certifies:

* A write failed with `EPIPE`: the backend had closed before these bytes came.
* Bytes of it have not left this process.
* On a Unix socket: bytes lay in the backend's receive buffer when it closed (our end then has
  `ECONNRESET`, unix(7)), or lie there still after it shut the connection down (`SIOCOUTQ`).
* On TCP: the backend's FIN, and then a reset. It had ended its side before it read these bytes.

A reset alone on TCP certifies nothing: a program can ask for one after it has read everything
(`SO_LINGER`). Nor does an end without any sign of the above. Other systems certify only the
first two.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys

__all__ = ["never_read"]


def never_read(transport: asyncio.Transport, error: Exception | None) -> bool | None:
    """Return whether the backend cannot have read the whole of what was written.

    Args:
        transport: of the connection that the backend ended.
        error: how it ended; None for an end of file.

    Returns:
        None where that may still be learned in a moment: on TCP a reset follows its FIN.
    """
    if isinstance(error, BrokenPipeError):
        return True
    connection = transport.get_extra_info("socket")
    on_unix = sys.platform == "linux" and connection.family == socket.AF_UNIX
    if error is not None:
        return on_unix and isinstance(error, ConnectionResetError)
    if transport.get_write_buffer_size():
        return True
    if sys.platform != "linux":
        return False
    if on_unix and _bytes_unread(connection.fileno()):
        return True
    pending = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if on_unix:
        return bool(pending == errno.ECONNRESET)
    return True if pending == errno.EPIPE else None


def _bytes_unread(descriptor: int) -> int:
    if sys.platform == "win32":
        return 0
    import fcntl  # noqa: PLC0415 - Windows has no such module
    import termios  # noqa: PLC0415 - Windows has no such module either

    # TIOCOUTQ and SIOCOUTQ are one number (unix(7)).
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
