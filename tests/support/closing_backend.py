"""A backend that ends its connections at awkward moments; blocking sockets, as llama.cpp's are.

Bytes that were not read stay in the system's buffer, as they do for a server with threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gateway_parts as parts

from companion_core.providers import TcpChannel, UnixChannel

Ending = Callable[[socket.socket], None]

WHOLE = parts.answer()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


def next_one_came(connection: socket.socket) -> None:
    """Wait until the next request has come and lies there unread, for a moment at most."""
    select.select([connection], [], [], 0.15)


def at_once(connection: socket.socket) -> None:
    connection.close()


def a_little_later(connection: socket.socket) -> None:
    time.sleep(0.01)
    connection.close()


def later(connection: socket.socket) -> None:
    time.sleep(0.1)
    connection.close()


def unread(connection: socket.socket) -> None:
    next_one_came(connection)
    connection.close()


def shut_down_unread(connection: socket.socket) -> None:
    next_one_came(connection)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.005)
    connection.close()


def shut_down_and_held_up(connection: socket.socket) -> None:
    """As a server with threads on a busy machine, which has to wait between the two calls."""
    next_one_came(connection)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    time.sleep(0.4)
    connection.close()


def reset(connection: socket.socket) -> None:
    time.sleep(0.01)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class ClosingBackend:
    """Answers one request on each connection, then ends that in one of the ways above.

    Attributes:
        answers: what it answers; None closes without an answer, once the request was read.
        ending: what follows an answer.
        at_first: what is done with the numbered connections (0 is the first) before a request
            is read from them.
        requests: what it read.
    """

    def __init__(self, answer: bytes = WHOLE, ending: Ending = at_once) -> None:
        self.answer = answer
        self.ending = ending
        self.per_connection = 1
        self.at_first: dict[int, Ending] = {}
        self.answer_none_from = 1_000_000
        self.requests: list[bytes] = []
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    @contextlib.contextmanager
    def serve(self, folder: Path | None) -> Iterator[UnixChannel | TcpChannel]:
        """Listen on a Unix socket in `folder`, or on TCP where that is None."""
        if folder is None:
            listener = socket.create_server(("127.0.0.1", 0))
            channel: Any = TcpChannel(host="127.0.0.1", port=listener.getsockname()[1])
        else:
            listener, path = socket.socket(socket.AF_UNIX), str(folder / "b.sock")
            listener.bind(path)
            listener.listen(16)
            channel = UnixChannel(path=path)
        accepting = threading.Thread(target=self._accept, args=(listener,))
        accepting.start()
        try:
            yield channel
        finally:
            for one in [listener, *self._sockets]:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for thread in self._threads:
                thread.join(10)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            self._sockets.append(connection)
            number, self.connections = self.connections, self.connections + 1
            thread = threading.Thread(target=self._serve_one, args=(connection, number))
            self._threads.append(thread)
            thread.start()

    def _serve_one(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            if number in self.at_first:
                self.at_first[number](connection)
                return
            for _ in range(self.per_connection):
                request = read_request(connection)
                if not request:
                    return
                self.requests.append(request)
                if len(self.requests) > self.answer_none_from:
                    break
                connection.sendall(self.answer)
            self.ending(connection)


def read_request(connection: socket.socket) -> bytes:
    """Return a whole request; nothing where the connection ends before that."""
    request = b""
    while True:
        head, blank, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if blank and len(body) >= (int(length[1]) if length else 0):
            return request
        data = connection.recv(65536)
        if not data:
            return b""
        request += data


def run(
    backend: ClosingBackend,
    life: Callable[[parts.Door], Awaitable[None]],
    *,
    unix: bool,
    **settings: Any,
) -> None:
    """Run `life` with a gateway before `backend`."""

    async def main() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            backend.serve(Path(folder) if unix else None) as channel,
        ):
            async with parts.open_door(**settings) as door:
                assert door.gateway.backend is not None
                door.gateway.attach(replace(door.gateway.backend, channel=channel))
                await life(door)

    asyncio.run(main())
