"""Clients that misuse what HTTP and TCP allow: the door stays open to its owner, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gateway_parts as parts
import pytest

pytestmark = [pytest.mark.security, pytest.mark.usefixtures("each_event_loop")]

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"

# Its own process, so that only it needs more descriptors than a process usually has.
IDLER = """
import resource, socket, sys
port, number = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (number + 100, hard))
held = []
for _ in range(number):
    held.append(socket.create_connection(("127.0.0.1", port), timeout=60))
print(len(held), flush=True)
sys.stdin.read()
"""


def most_open_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def many_files(require_real: Any) -> Iterator[None]:
    """Room for a thousand connections that have both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require_real("4,096 open files", most_open_files() >= 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def endless(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
    writer.write(CHUNKED)
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


def test_ten_thousand_idle_connections_keep_no_client_out(require_real: Any) -> None:
    require_real("10,100 open files", most_open_files() >= 10_100)

    async def main() -> None:
        async with parts.open_door(
            requests_per_minute=1_000_000, lifetime=110, head_seconds=110
        ) as door:
            port, number = str(door.gateway.port), "10000"
            idler = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", IDLER, port, number),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert idler.stdin is not None
            assert idler.stdout is not None
            opened = asyncio.create_task(idler.stdout.readline())
            most_files = 0
            try:
                while not opened.done():
                    assert (await door.ask(door.get("/v1/models"))).status == 200
                    most_files = max(most_files, open_files())
                assert await opened == b"10000\n"
                await parts.eventually(lambda: len(door.gateway.context.connections) == 512)
                assert (await door.ask(door.post())).status == 200
                assert most_files < 1000  # the usual limit is 1,024
            finally:
                idler.stdin.close()
                await idler.wait()

    asyncio.run(main())


def test_a_flood_of_a_thousand_requests_for_two_places(many_files: None) -> None:
    running, most, flood = 0, 0, 1000

    async def work(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        writer.write(parts.answer())

    async def main() -> None:
        async with parts.open_door(
            work,
            requests_per_minute=10 * flood,
            max_connections=2 * flood,
            head_seconds=60,  # the first client waits until the last one has connected
        ) as door:
            clients = [await door.connect() for _ in range(flood)]
            for client in clients:
                client.writer.write(door.post())
            answers = [await client.read_answer() for client in clients]
            seen = Counter(answer.status for answer in answers)
            refused = [answer for answer in answers if answer.status != 200]
            assert set(seen) <= {200, 503}
            assert seen[200] >= 18  # two places and sixteen that wait
            assert {answer.code for answer in refused} <= {"queue_full"}
            assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
            assert most <= 2
            assert len(door.backend.requests) == seen[200]
            snapshot = door.gateway.snapshot()
            assert (snapshot.in_flight, snapshot.queued) == (0, 0)
            for client in clients:
                client.writer.transport.abort()

    asyncio.run(main())


def test_slowloris_is_cut_off_and_its_connections_make_room() -> None:
    async def drip(client: Any, raw: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in raw:
                client.writer.write(bytes([byte]))
                await client.writer.drain()
                await asyncio.sleep(0.02)

    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(head_seconds=10, max_connections=32, clock=clock) as door:
            slow = [await door.connect() for _ in range(32)]
            head = b"GET /v1/models HTTP/1.1\r\n" + b"X-Padding: a\r\n" * 500
            dripping = [asyncio.create_task(drip(client, head)) for client in slow]
            assert (await door.ask(door.get("/v1/models"))).status == 200
            table = door.gateway.context.connections
            for _ in range(2):  # to send a head, and to take its refusal
                clock.now += 11
                await parts.eventually(lambda: all(one.deadline > clock.now for one in table))
            await parts.eventually(lambda: not table)
            for task in dripping:
                task.cancel()
            for client in slow:
                client.writer.transport.abort()

    asyncio.run(main())


def test_a_body_byte_by_byte_is_served() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            for extra in ("", "Transfer-Encoding: chunked\r\n"):
                client = await door.connect()
                raw = door.post({"model": "m", "n": "x" * 50})
                if extra:
                    head, _, body = raw.partition(b"\r\n\r\n")
                    head = b"\r\n".join(
                        line for line in head.split(b"\r\n") if b"Content-Length" not in line
                    )
                    raw = b"%b\r\n%b\r\n" % (head, extra.encode())
                    raw += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                for byte in raw + door.get("/v1/models"):
                    client.writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                assert (await client.read_answer()).status == 200
                assert b'"data"' in (await client.read_answer()).body
                await client.close()

    asyncio.run(main())


def test_a_client_that_closes_its_half_has_left() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, max_in_flight=1) as door:
            running, waiting = await door.connect(), await door.connect()
            running.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            waiting.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
            waiting.writer.write_eof()
            await parts.eventually(lambda: door.gateway.snapshot().queued == 0)
            running.writer.write_eof()
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)
            assert len(door.backend.requests) == 1
            for client in (running, waiting):
                client.writer.transport.abort()

    asyncio.run(main())


def test_a_client_that_never_reads_is_cut_off_and_frees_its_place() -> None:
    async def main() -> None:
        async with parts.open_door(endless, stall_seconds=0.3) as door:
            client = socket.create_connection(("127.0.0.1", door.gateway.port))
            try:
                client.sendall(door.post())
                await parts.soon(lambda: door.gateway.snapshot().in_flight == 1)
                await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)
                await parts.eventually(lambda: not door.gateway.context.connections)
                await asyncio.wait_for(door.backend.hung_up.wait(), 30)
            finally:
                client.close()

    asyncio.run(main())


def test_an_answer_that_stops_in_the_middle_has_a_deadline() -> None:
    async def stalls(backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await backend.release.wait()

    async def main() -> None:
        async with parts.open_door(stalls, between_bytes_seconds=0.1) as door:
            client = await door.connect()
            client.writer.write(door.post())
            with contextlib.suppress(ConnectionError):
                assert b"0\r\n\r\n" not in await client.reader.read()
            assert door.gateway.snapshot().in_flight == 0
            await client.close()

    asyncio.run(main())


def test_what_is_sent_ahead_of_an_answer_is_bounded() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released) as door:
            client = await door.connect()
            client.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    client.writer.write(door.get("/v1/models") * 50)
                    await client.writer.drain()
            await parts.eventually(lambda: not door.gateway.context.connections)
            assert door.gateway.snapshot().in_flight == 0
            client.writer.transport.abort()

    asyncio.run(main())


def test_a_thousand_pipelined_refusals_are_answered_in_order() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=4000) as door:
            client = await door.connect()
            chunked = door.head(
                extra="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            )
            refused = f"{chunked}\r\n3\r\n[1]\r\n0\r\n\r\n".encode()
            client.writer.write(refused * 1000 + door.get("/v1/models"))
            for _ in range(1000):
                assert (await client.read_answer()).code == "malformed_body"
            assert (await client.read_answer()).status == 200
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","MODEL":"another"}',
        b'{"Model":"another","model":"m"}',
        '{"model":"m","me\u017f\u017fages":[],"messages":[]}'.encode(),
        b'{"model":"m","\\u006dodel":"m"}',
    ],
)
def test_two_spellings_of_one_field_are_refused(body: bytes) -> None:
    # Go's encoding/json matches names whatever their case, and the last one wins.
    async def main() -> None:
        async with parts.open_door() as door:
            assert (await door.ask(door.post(body))).code == "malformed_body"
            assert door.backend.requests == []

    asyncio.run(main())


def test_dropped_fields_are_dropped_in_every_spelling() -> None:
    async def main() -> None:
        async with parts.open_door(drop_fields=("lora", "slot_file")) as door:
            body = {"model": "m", "LoRA": ["/etc/passwd"], "\u017flot_file": "x", "n": 1}
            assert (await door.ask(door.post(body))).status == 200
            sent = door.backend.requests[0].partition(b"\r\n\r\n")[2]
            assert sent == b'{"model":"served","n":1}'

    asyncio.run(main())


def test_an_answer_to_head_has_no_body() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            client = await door.connect()
            head = door.get("/v1/models").replace(b"GET", b"HEAD", 1)
            client.writer.write(head + door.get("/v1/models"))
            first = await client.reader.readuntil(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 405 ")
            assert (await client.read_answer()).status == 200
            await client.close()

    asyncio.run(main())


def test_a_refused_expectation_never_swallows_the_next_request() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            client = await door.connect()
            expecting = door.post(token="wrong", extra="Expect: 100-continue\r\n")
            head = expecting.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            client.writer.write(head + door.get("/v1/models"))
            refused = await client.read_answer()
            assert (refused.status, refused.headers["connection"]) == (401, "close")
            assert await client.reader.read() == b""
            other = await door.ask(door.get("/v1/models", extra="Expect: 200-ok\r\n"))
            assert other.status == 417
            await client.close()

    asyncio.run(main())
