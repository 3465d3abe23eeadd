"""The broker: runs beside a runtime in its network namespace and hands out connections (I-07).

It runs as a program of its own, `python -I -S broker.py LINE PORT PROGRAM ARGUMENT…`, and imports
only the standard library. LINE is one end of a pair of sockets; the companion alone has the other
end. For each packet on it the broker connects to the runtime's loopback port and sends the
connected socket back; no byte of a request passes through the broker. Nothing here has a name that
another program could open. The broker ends when the runtime does, with its exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from typing import NoReturn

if sys.platform != "linux":
    raise ImportError("only Linux has network namespaces")

_CONNECT_SECONDS = 2.0
_HANDED, _REFUSED = b"k", b"e"
_SIGNALLED = 128


def _hand_out(line: socket.socket, port: int) -> None:
    try:
        connection = socket.create_connection(("127.0.0.1", port), _CONNECT_SECONDS)
    except OSError:
        line.send(_REFUSED)
        return
    with connection:
        connection.settimeout(None)  # the setting is the socket's, and would go along with it
        socket.send_fds(line, [_HANDED], [connection.fileno()])


def main() -> NoReturn:
    """Start the runtime, hand out connections to it, and end with its exit code."""
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    port = int(sys.argv[2])
    runtime = os.fork()
    if runtime == 0:
        with contextlib.suppress(OSError):
            os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - the command of a checked plan
        os._exit(127)
    ended = os.pidfd_open(runtime)
    while True:
        readable, _, _ = select.select([line.fileno(), ended], [], [])
        if ended in readable:
            code = os.waitstatus_to_exitcode(os.waitpid(runtime, 0)[1])
            os._exit(code if code >= 0 else _SIGNALLED - code)
        try:
            asked = line.recv(1)
            if asked:
                _hand_out(line, port)
        except OSError:
            asked = b""
        if not asked:  # the companion is gone; the namespace ends with this process
            os._exit(0)


if __name__ == "__main__":
    main()
