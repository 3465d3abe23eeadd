"""How long the gateway waits for a runtime that is healthy, and what ends that wait."""

from __future__ import annotations

import asyncio
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.gateway.gateway import SWEEP_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


async def two_sweeps() -> None:
    await asyncio.sleep(2.5 * SWEEP_SECONDS)


def test_an_answer_that_takes_longer_than_ten_minutes_is_not_cut_off() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(parts.answer_when_released, clock=clock) as door:
            asked = await door.ask_running()
            clock.now += 601
            await two_sweeps()
            assert not asked.done()
            door.backend.release.set()
            assert (await asked).status == 200

    asyncio.run(main())


def test_a_streams_first_word_may_come_as_long_after_its_head() -> None:
    async def slow(backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        head = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        await backend.release.wait()
        writer.write(b"2\r\nhi\r\n0\r\n\r\n")

    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(slow, clock=clock) as door:
            client = await door.connect()
            client.writer.write(door.post())
            await client.reader.readuntil(b"\r\n\r\n")
            clock.now += 601
            await two_sweeps()
            door.backend.release.set()
            assert (await client.reader.readuntil(b"0\r\n\r\n")).startswith(b"2\r\nhi")
            await client.close()

    asyncio.run(main())


def test_the_wait_that_was_configured_ends_it_and_so_does_a_client_that_leaves() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(
            parts.answer_when_released, clock=clock, first_byte_seconds=5
        ) as door:
            asked = await door.ask_running()
            clock.now += 5.1
            answer = await asked
            assert (answer.status, answer.code) == (502, "upstream_failed")
            leaving = await door.connect()
            leaving.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            await leaving.close()
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)

    asyncio.run(main())
