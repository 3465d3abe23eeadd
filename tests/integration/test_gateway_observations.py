"""A request that comes while the newest observation is too old waits for the next one (I-12)."""

from __future__ import annotations

import asyncio
from typing import Any

import gateway_parts as parts
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


@pytest.mark.parametrize("seen", ["ok", "over"])
def test_it_is_answered_as_the_next_observation_says(seen: str) -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            for request in (door.post(), door.get("/v1/models")):
                door.conditions.observe(None)
                asked = asyncio.ensure_future(door.ask(request + door.get("/v1/models")))
                await parts.eventually(lambda: len(door.conditions.waiting) == 1)
                door.conditions.observe(None)  # held up once more
                await asyncio.sleep(0.05)
                assert not asked.done()
                door.conditions.observe(parts.OK if seen == "ok" else parts.refuse_ram())
                answer = await asked
                assert answer.status == 200 if seen == "ok" else answer.code == "ram_over_limit"

    asyncio.run(main())


def test_one_that_waited_for_a_place_has_its_answer_translated_all_the_same() -> None:
    free = asyncio.Event()

    async def slowly(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await free.wait()
        writer.write(parts.answer(b'{"model":"served"}'))

    async def main() -> None:
        async with parts.open_door(slowly, max_in_flight=1) as door:
            asked = [asyncio.ensure_future(door.ask(door.post())) for _ in range(2)]
            await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
            door.conditions.observe(None)
            free.set()
            await parts.eventually(lambda: len(door.conditions.waiting) == 1)
            door.conditions.observe(parts.OK)
            answers = await asyncio.gather(*asked)
            assert [answer.body for answer in answers] == [b'{"model":"m"}'] * 2

    asyncio.run(main())


def test_without_another_observation_it_is_refused_in_time() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(clock=clock) as door:
            door.conditions.observe(None)
            client = await door.connect()
            client.writer.write(door.post())
            await parts.eventually(lambda: len(door.conditions.waiting) == 1)
            clock.now += 4
            assert (await client.read_answer()).code == "probe_failed"
            door.conditions.observe(parts.OK)
            assert (await door.ask(door.post())).status == 200
            await client.close()

    asyncio.run(main())


def test_a_client_that_leaves_meanwhile_is_forgotten() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            door.conditions.observe(None)
            client = await door.connect()
            client.writer.write(door.post())
            await parts.eventually(lambda: len(door.conditions.waiting) == 1)
            client.writer.transport.abort()
            await parts.eventually(lambda: len(door.gateway.context.connections) == 0)
            door.conditions.observe(parts.OK)
            await asyncio.sleep(0.05)
            assert door.backend.requests == []
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())
