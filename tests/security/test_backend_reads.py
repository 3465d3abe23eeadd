"""No backend runs a request twice, and none answers one client with what another one sent."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable

import closing_backend as closing
import gateway_parts as parts
import pytest
from closing_backend import CHUNKED, WHOLE, ClosingBackend, run

pytestmark = [
    pytest.mark.security,
    pytest.mark.usefixtures("each_event_loop"),
    pytest.mark.skipif(sys.platform != "linux", reason="what Linux certifies"),
]

UNIX_AND_TCP = pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
MORE_THAN_SOCKETS_HOLD = 8_000_000


def shut_down_then_read(
    backend: ClosingBackend, how: int, *, wait: float, after: Callable[[socket.socket], None]
) -> closing.Ending:
    """Return an ending that shuts the connection down while a request lies there, then reads it."""

    def end(connection: socket.socket) -> None:
        closing.next_one_came(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(how)
        time.sleep(wait)
        request = closing.read_request(connection)
        if request:
            backend.requests.append(request)
        after(connection)

    return end


def stay_open(connection: socket.socket) -> None:
    time.sleep(0.3)


@UNIX_AND_TCP
@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR], ids=["write", "both"])
@pytest.mark.parametrize(
    ("wait", "after"), [(0.05, closing.at_once), (0.003, closing.reset), (0.05, stay_open)]
)
@pytest.mark.parametrize("size", [1, MORE_THAN_SOCKETS_HOLD], ids=["small", "large"])
def test_what_is_read_after_a_shutdown_runs_once(
    unix: bool, how: int, wait: float, after: Callable[[socket.socket], None], size: int
) -> None:
    backend = ClosingBackend()
    backend.ending = shut_down_then_read(backend, how, wait=wait, after=after)

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.post())
        assert (await client.read_answer()).status == 200
        client.writer.write(door.post({"model": "m", "number": 2, "messages": "x" * size}))
        assert (await client.read_answer()).status in {200, 502}
        await client.close()

    run(backend, life, unix=unix)
    second = [
        request for request in backend.requests if b'"number":2' in request.replace(b" ", b"")
    ]
    assert len(second) <= 1


@pytest.mark.parametrize(
    ("unix", "size"),
    [(True, 2_000), (True, MORE_THAN_SOCKETS_HOLD), (False, MORE_THAN_SOCKETS_HOLD)],
)
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["whole", "chunked"])
def test_no_request_follows_one_that_was_not_read(unix: bool, size: int, answer: bytes) -> None:
    """The backend answers once it has read the head, and leaves the body where it is."""
    backend, left = ClosingBackend(), []

    def answer_early(connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        connection.sendall(answer)
        connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            time.sleep(0.3)
            while data := connection.recv(1 << 20):
                left.append(data)

    backend.at_first = {0: answer_early}
    backend.per_connection = 100

    async def life(door: parts.Door) -> None:
        first, second = await door.connect(), await door.connect()
        first.writer.write(door.post({"model": "m", "messages": "x" * size}))
        assert (await first.read_answer()).status == 200
        second.writer.write(door.post({"model": "m", "whose": "the second one's"}))
        assert (await second.read_answer()).status == 200
        await first.close()
        await second.close()

    run(backend, life, unix=unix)
    assert b"whose" not in b"".join(left)
    assert backend.connections == 2
    assert len(backend.requests) == 1


@UNIX_AND_TCP
@pytest.mark.parametrize("size", [10, MORE_THAN_SOCKETS_HOLD])
def test_one_that_was_read_leaves_its_connection(unix: bool, size: int) -> None:
    backend = ClosingBackend()
    backend.per_connection = 100

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        for _ in range(3):
            client.writer.write(door.post({"model": "m", "messages": "x" * size}))
            assert (await client.read_answer()).status == 200
        await client.close()

    run(backend, life, unix=unix)
    assert (len(backend.requests), backend.connections) == (3, 1)
