"""Large bodies: they hold nobody else up, and all together they take a bounded memory (I-20)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.gateway.http.body import LARGE_BODY

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

TEN = 10 * 2**20
JSON = "Content-Type: application/json\r\n"


def body_of(kind: str) -> bytes:
    """Return a body of ten megabytes."""
    if kind == "members":
        inner = b",".join(b'"%07d":1' % number for number in range(800_000))
        return b'{"model":"m",%b}' % inner
    if kind == "texts":
        inner = b",".join(b'"%b"' % (b"x" * 400) for _ in range(24_000))
        return b'{"model":"m","x":[%b]}' % inner
    return b'{"model":"m","x":"%b"}' % (b"\\n" * (TEN // 2 - 100))


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "status"), [("members", 413), ("texts", 200), ("one text", 200)])
def test_while_a_large_body_is_read_a_stream_goes_on(kind: str, status: int) -> None:
    async def handle(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        if len(request) > LARGE_BODY:
            writer.write(parts.answer())
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"2\r\nhi\r\n")
                await writer.drain()
                await asyncio.sleep(0.002)

    body = body_of(kind)

    async def main() -> float:
        async with parts.open_door(handle) as door:
            # What the gateway's loop does at once holds a stream up. In processor time: what other
            # programs take of the machine meanwhile is not the gateway's.
            worst, last, ended = 0.0, time.thread_time(), asyncio.Event()
            checked = door.gateway.context.checks

            async def watch() -> None:
                nonlocal worst, last
                busy = False
                while not ended.is_set():
                    await asyncio.sleep(0)
                    now = time.thread_time()
                    if busy or checked._work:  # the last look is at what writes and sends it
                        worst = max(worst, now - last)
                    busy, last = bool(checked._work) or (busy and not ended.is_set()), now

            streaming = await door.connect()
            streaming.writer.write(door.post())
            await streaming.reader.readuntil(b"hi\r\n")
            watching = asyncio.ensure_future(watch())
            answer = await door.ask(door.post(body))
            ended.set()
            await watching
            await streaming.close()
            assert answer.status == status
            if status == 413:
                assert answer.code == "body_too_large"
            return worst

    # A collection walks what all other tests have left in this process, which no gateway has.
    gc.collect()
    gc.freeze()
    try:
        # A processor that is shared may be slow for a moment; what is done at once is so each time.
        assert min(asyncio.run(main()) for _ in range(3)) < 0.05
    finally:
        gc.unfreeze()


def rss() -> int:
    """Return the bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_forty_unfinished_bodies_take_a_bounded_memory_and_keep_nobody_out() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(clock=clock, requests_per_minute=1000) as door:
            before, part = rss(), b'{"model":"m","x":"' + b"a" * 2**18
            head = door.head(extra=f"{JSON}Content-Length: {TEN}\r\n").encode() + b"\r\n"
            clients, most = [], 0
            for _ in range(40):
                client = await door.connect()
                clients.append(client)
                with contextlib.suppress(ConnectionError):
                    client.writer.write(head)
                    for _ in range(38):
                        client.writer.write(part)
                        await client.writer.drain()
                        await asyncio.sleep(0)
                most = max(most, door.gateway.context.bodies.held)
            assert most > 2**25
            assert most <= 64 * 2**20
            assert rss() - before < 160 * 2**20
            whole = b'{"model":"m","x":"' + b"a" * (2**20) + b'"}'
            assert (await door.ask(door.post(whole))).status == 200
            refused = await clients[0].read_answer()
            assert (refused.status, refused.code) == (503, "queue_full")
            assert int(refused.headers["retry-after"]) > 0
            for client in clients:
                client.writer.transport.abort()
            await parts.eventually(lambda: len(door.gateway.context.connections) == 0)
            assert door.gateway.context.bodies.held == 0

    asyncio.run(main())


def test_what_was_held_is_given_back_on_every_way_out() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(
            parts.answer_when_released, clock=clock, max_in_flight=1, requests_per_minute=1000
        ) as door:
            bodies = door.gateway.context.bodies
            large = door.post(b'{"model":"m","x":"' + b"a" * 400_000 + b'"}')
            running = asyncio.ensure_future(door.ask(large))
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            assert bodies.held == 0
            waiting = asyncio.ensure_future(door.ask(large))
            await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
            assert bodies.held > 400_000
            door.backend.release.set()
            assert [(await each).status for each in (running, waiting)] == [200, 200]
            assert bodies.held == 0
            wrong = door.post(b'{"model":"m","x":"' + b"a" * 400_000)
            assert (await door.ask(wrong)).code == "malformed_body"
            assert bodies.held == 0
            chunked = door.head(extra=JSON + "Transfer-Encoding: chunked\r\n").encode() + b"\r\n"
            assert (await door.ask(chunked + b"x\r\n")).status == 400
            assert bodies.held == 0
            late = await door.connect()
            late.writer.write(wrong[:-1000])
            await parts.eventually(lambda: bodies.held > 300_000)
            clock.now += 31
            assert (await late.read_answer()).code == "request_timeout"
            assert bodies.held == 0
            await late.close()

    asyncio.run(main())


def test_a_client_that_leaves_while_its_body_is_read_leaves_nothing() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            client = await door.connect()
            client.writer.write(door.post(body_of("one text")))
            await parts.eventually(lambda: bool(door.gateway.context.checks._work))
            client.writer.transport.abort()
            await parts.eventually(lambda: len(door.gateway.context.connections) == 0)
            assert not door.gateway.context.checks._work
            assert door.gateway.context.bodies.held == 0
            assert door.backend.requests == []
            assert (await door.ask(door.post())).status == 200

    asyncio.run(main())
