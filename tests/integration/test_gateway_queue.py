"""Requests that wait for a place: their order, their deadline, and what ends their wait."""

from __future__ import annotations

import asyncio
import json

import gateway_parts as parts
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


def test_queue_is_first_come_first_served() -> None:
    async def main() -> None:
        async with parts.open_door(
            parts.answer_when_released, max_in_flight=1, queue_bound=2
        ) as door:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(door.ask(door.post({"model": "m", "n": number}))))
                await parts.eventually(
                    lambda waiting=number: (
                        door.gateway.snapshot().queued == waiting
                        and door.gateway.snapshot().in_flight == 1
                    )
                )
            full = await door.ask(door.post())
            assert (full.status, full.code) == (503, "queue_full")
            assert 1 <= int(full.headers["retry-after"]) <= 60
            door.backend.release.set()
            assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * 3
            order = [
                json.loads(raw.partition(b"\r\n\r\n")[2])["n"] for raw in door.backend.requests
            ]
            assert order == [0, 1, 2]
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_waiting_has_a_deadline() -> None:
    async def main() -> None:
        async with parts.open_door(
            parts.answer_when_released, max_in_flight=1, queue_bound=1, queue_deadline_seconds=0.1
        ) as door:
            running = await door.ask_running()
            late = await door.ask(door.post())
            assert (late.status, late.code) == (503, "queue_deadline")
            assert door.gateway.snapshot().queued == 0
            door.backend.release.set()
            assert (await running).status == 200
            assert len(door.backend.requests) == 1

    asyncio.run(main())


def test_leaving_frees_the_place_in_the_queue() -> None:
    async def main() -> None:
        async with parts.open_door(
            parts.answer_when_released, max_in_flight=1, queue_bound=1, queue_deadline_seconds=3600
        ) as door:
            running = await door.ask_running()
            leaver = await door.connect()
            leaver.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
            leaver.writer.transport.abort()
            await parts.eventually(lambda: door.gateway.snapshot().queued == 0)
            door.backend.release.set()
            assert (await running).status == 200
            assert len(door.backend.requests) == 1

    asyncio.run(main())


def test_lifecycle_counts_anew_when_a_waiter_gets_its_place() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, max_in_flight=1) as door:
            running = await door.ask_running()
            waiting = await door.ask_waiting()
            door.conditions.resource_verdict = parts.refuse_ram()
            door.backend.release.set()
            assert (await running).status == 200
            assert (await waiting).code == "ram_over_limit"
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_drain_waits_for_what_runs_and_refuses_the_rest() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, max_in_flight=1) as door:
            running = await door.ask_running()
            waiting = await door.ask_waiting()
            assert await door.gateway.drain(0.05) is False
            assert (await waiting).code == "not_ready"
            assert (await door.ask(door.post())).code == "not_ready"
            draining = asyncio.create_task(door.gateway.drain(30))
            door.backend.release.set()
            assert await draining is True
            assert (await running).status == 200
            door.gateway.detach()
            assert (await door.ask(door.post())).code == "not_ready"

    asyncio.run(main())
