"""Take a port on loopback, and nowhere else, without sharing it (I-17)."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Final

__all__ = ["bind_loopback"]

BIND_ATTEMPTS: Final = 8
_NO_IPV6: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


def bind_loopback(port: int) -> list[socket.socket]:
    """Return listeners on 127.0.0.1 and, where there is one, on [::1], of one port.

    A port that another program holds on [::1] is not used: a client that resolves "localhost"
    to it would hand that program the token.
    """
    for attempt in range(BIND_ATTEMPTS):
        first = _bind(socket.AF_INET, "127.0.0.1", port)
        chosen = first.getsockname()[1]
        try:
            return [first, _bind(socket.AF_INET6, "::1", chosen)]
        except OSError as error:
            if not socket.has_ipv6 or error.errno in _NO_IPV6:
                return [first]
            first.close()
            if port or attempt == BIND_ATTEMPTS - 1:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on both loopback addresses")


def _bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    # The protocol is named because asyncio switches Nagle's algorithm off only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Restarting on a fixed port while old connections linger; it shares no live port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    if listener.getsockname()[0] != address:
        listener.close()
        raise OSError(errno.EADDRNOTAVAIL, "bound elsewhere")
    listener.setblocking(False)  # noqa: FBT003 - `socket` takes no keyword here
    return listener
