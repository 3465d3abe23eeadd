"""The two ends of a gateway benchmark: a backend that answers at once, and its clients.

    python benchmarks/load.py backend unix:/path|host:port

`compare_gateway.py` runs the clients. Neither end is measured, only the processor time of the
process between them.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from companion_core.cli.foreground import run_event_loop

ANSWER = json.dumps(
    {"choices": [{"message": {"role": "assistant", "content": "hello there"}}], "object": "x" * 150}
).encode()
EVENT = b"data: " + b"x" * 158 + b"\n\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


class Backend(asyncio.Protocol):
    """Answers a request with JSON, or with as many events as its body asks for."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = b""
        self.left = 0
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not separator or (length and len(body) < int(length[1])):
            return
        self.buffer = b""
        asked = json.loads(body) if body else {}
        if asked.get("stream"):
            work = self.stream(asked["max_tokens"], asked["seed"] / 1e6)
            self.task = asyncio.get_running_loop().create_task(work)
        elif asked.get("seed") != -1:  # -1: never answer
            self.transport.write(JSON_HEAD % len(ANSWER) + ANSWER)

    async def stream(self, events: int, pause: float) -> None:
        """Write each event by itself, as runtimes do."""
        self.transport.write(STREAM_HEAD)
        for _ in range(events):
            self.transport.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
            if pause:
                await asyncio.sleep(pause)
        self.transport.write(END)


async def serve_backend(address: str) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        server = await loop.create_unix_server(Backend, address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        server = await loop.create_server(Backend, host, int(port))
    await server.serve_forever()


class Client(asyncio.Protocol):
    """Sends one request after the other on one connection."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = load.request()
        self.left = load.requests // load.clients
        self.answer = bytearray()
        self.begun = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed by the target"))

    def send(self) -> None:
        """Send the next request, if one is left."""
        if self.left == 0:
            self.done.set_result(None)
            self.transport.close()
            return
        self.left -= 1
        self.begun = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.answer += data
        if not self.answer.endswith(END if self.load.events else ANSWER):
            return
        if not self.answer.startswith(b"HTTP/1.1 200"):
            self.transport.abort()
            return
        self.load.seconds.append(time.perf_counter() - self.begun)
        self.answer.clear()
        self.send()


@dataclass
class Load:
    """Clients that run at the same time; each sends one request after the other."""

    port: int
    token: str
    clients: int
    requests: int
    events: int = 0
    pause_microseconds: int = 0
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0

    def request(self) -> bytes:
        """Return the request that every client sends."""
        body = json.dumps(
            {
                "model": "m",
                "stream": self.events > 0,
                "max_tokens": self.events,
                "seed": self.pause_microseconds,
                "messages": [{"role": "user", "content": "Write a haiku about loopback, please"}],
            }
        )
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Accept: */*\r\nUser-Agent: load\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def run(self, connected: Callable[[], None]) -> None:
        """Send every request; `connected` is called first, once all clients are connected."""
        loop = asyncio.get_running_loop()
        clients = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port))[1]
            for _ in range(self.clients)
        ]
        await asyncio.sleep(0.05)
        connected()
        started = time.perf_counter()
        for client in clients:
            client.send()
        await asyncio.gather(*(client.done for client in clients))
        self.elapsed = time.perf_counter() - started

    @property
    def median_microseconds(self) -> float:
        """The median time of a request."""
        return statistics.median(self.seconds) * 1e6


if __name__ == "__main__":
    run_event_loop(serve_backend(sys.argv[2]))
