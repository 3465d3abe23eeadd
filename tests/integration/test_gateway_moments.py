"""The moments in between: a place handed over, a connection being made, while things change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.gateway import Backend

pytestmark = pytest.mark.integration


def test_a_body_written_for_one_backend_never_reaches_another() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, max_in_flight=1) as door:
            running = await door.ask_running()
            waiting = await door.ask_waiting()
            backend = door.gateway.backend
            assert isinstance(backend, Backend)
            # The place is on its way to the waiter.
            waiter = door.gateway.context.queue.release(0.1, 0.0)
            assert waiter is not None
            door.gateway.attach(replace(backend, served_model="other"))
            waiter.place_is_free()
            assert (await waiting).code == "not_ready"
            assert (await running).code == "upstream_failed"
            assert len(door.backend.requests) == 1

    asyncio.run(main())


def test_a_connection_made_too_late_is_not_used() -> None:
    async def main() -> None:
        egress = parts.HoldableEgress()
        async with parts.open_door(egress=egress) as door:
            egress.hold()
            asked = await door.ask_running()
            door.gateway.detach()
            egress.free.set()
            assert (await asked).code == "upstream_failed"
            assert door.backend.requests == []
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


@pytest.mark.usefixtures("each_event_loop")
def test_a_connection_whose_client_left_serves_the_next_request() -> None:
    async def main() -> None:
        egress = parts.HoldableEgress()
        async with parts.open_door(egress=egress) as door:
            egress.hold()
            pool: Any = door.gateway.context.pool
            client = await door.connect()
            client.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            await client.close()
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)
            egress.free.set()
            await parts.eventually(lambda: bool(pool._idle))
            assert (await door.ask(door.post())).status == 200
            assert (door.backend.connections, len(door.backend.requests)) == (1, 1)

    asyncio.run(main())


@pytest.mark.usefixtures("each_event_loop")
def test_a_connection_that_speaks_unasked_is_not_used_again() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            assert (await door.ask(door.post())).status == 200
            pool = door.gateway.context.pool
            assert pool is not None
            (idle,) = pool._idle
            idle.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert pool.take_idle(door.gateway.context.now()) is None  # in the same moment
            assert (await door.ask(door.post())).status == 200
            assert door.backend.connections == 2

    asyncio.run(main())


def test_a_backend_that_does_not_accept_has_a_deadline() -> None:
    async def main() -> None:
        egress = parts.HoldableEgress()
        egress.hold()
        async with parts.open_door(egress=egress, max_in_flight=1, connect_seconds=0.1) as door:
            assert (await door.ask(door.post())).code == "upstream_failed"
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_a_fault_of_ours_gives_the_place_back() -> None:
    class Faulty:
        def inference(self, path: str, fields: dict[str, Any]) -> bytes:
            raise LookupError

    async def main() -> None:
        async with parts.open_door(max_in_flight=1) as door:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
            context: Any = door.gateway.context
            sound, context.requests = context.requests, Faulty()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await door.ask(door.post())
            context.requests = sound
            assert (await door.ask(door.post())).status == 200
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_a_limited_client_is_told_about_its_own_window() -> None:
    async def main() -> None:
        async with parts.open_door(
            requests_per_minute=1, strangers_per_minute=1, clock=lambda: 1000.0
        ) as door:
            owner, stranger = (
                door.gateway.context.budgets.owner,
                door.gateway.context.budgets.strangers,
            )
            assert owner is not None
            assert stranger is not None
            owner.record(950.0)
            stranger.record(980.0)
            limited = await door.ask(door.get("/v1/models"))
            assert (limited.status, limited.headers["retry-after"]) == (429, "10")
            limited = await door.ask(door.get("/v1/models", token="wrong"))
            assert (limited.status, limited.headers["retry-after"]) == (429, "40")

    asyncio.run(main())


@pytest.mark.usefixtures("each_event_loop")
def test_a_request_that_has_come_keeps_its_place_among_strangers_that_say_nothing() -> None:
    async def main() -> None:
        async with parts.open_door(max_connections=2) as door:
            address = "127.0.0.1", door.gateway.port
            with contextlib.ExitStack() as sockets:
                # All of them are there before the gateway accepts the first one.
                owner = sockets.enter_context(socket.create_connection(address))
                owner.sendall(door.get("/v1/models"))
                for _ in range(8):
                    sockets.enter_context(socket.create_connection(address))
                answer = await asyncio.to_thread(owner.recv, 4096)
                assert answer.startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())
