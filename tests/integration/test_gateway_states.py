"""Every transition that the tables list is made by the running gateway, and no other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.decisions.guard import HEALTH_PATH
from companion_core.gateway.states import CONNECTION_TABLE, EXCHANGE_TABLE, Moves

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

CLOSE = "Connection: close\r\n"
WAIT = "Prefer: wait=9999\r\n"
JSON = "Content-Type: application/json\r\n"
LISTED = {
    (str(event), str(before), str(after))
    for table in (CONNECTION_TABLE, EXCHANGE_TABLE)
    for event, moves in table.items()
    for before, after in moves.items()
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str, str]]:
    """What was looked up in the tables: event, state, next state ("illegal" for none)."""
    seen: set[tuple[str, str, str]] = set()
    look_up = Moves.__getitem__
    events = {
        id(moves): event
        for table in (CONNECTION_TABLE, EXCHANGE_TABLE)
        for event, moves in table.items()
    }

    def recorded(moves: Any, state: Any) -> Any:
        after = "illegal"
        try:
            after = look_up(moves, state)
            return after
        finally:
            seen.add((str(events[id(moves)]), str(state), str(after)))

    monkeypatch.setattr(Moves, "__getitem__", recorded)
    return seen


async def handler(backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
    """Answer at once, half, or when the test releases it, as the request asks."""
    if b'"half"' in request:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()
        return
    if b'"hold"' in request:
        await backend.release.wait()
    writer.write(parts.answer())


async def send(door: parts.Door, raw: bytes) -> parts.Client:
    client = await door.connect()
    client.writer.write(raw)
    return client


async def states_are(door: parts.Door, *expected: str) -> None:
    """Wait until the open connections are in these states."""

    def reached() -> bool:
        found = sorted(str(one._state) for one in door.gateway.context.connections)
        return found == sorted(expected)

    await parts.eventually(reached)


async def ask_in_every_way(door: parts.Door) -> None:
    """Requests that are answered or refused at once."""
    chunked = door.head(extra=JSON + "Transfer-Encoding: chunked\r\n") + "\r\n"
    for raw, status in (
        (door.get("/v1/models"), 200),
        (door.get("/v1/models", extra=CLOSE), 200),
        (door.post(), 200),
        (door.post(extra=CLOSE), 200),
        (b"\x16\r\n\r\n", 400),
        (chunked.encode() + b"x\r\n", 400),
    ):
        assert (await door.ask(raw)).status == status
    client = await send(door, chunked.encode())
    await states_are(door, "reading_body")
    client.writer.write(b'c\r\n{"model":"m"\r\n1\r\n}\r\n0\r\n\r\n')
    assert (await client.read_answer()).status == 200
    await client.close()
    half = await send(door, door.post({"model": "m", "how": "half"}))
    with contextlib.suppress(ConnectionError):
        await half.reader.read()
    await half.close()
    await states_are(door)


async def leave_in_every_state(door: parts.Door) -> None:
    """Clients that go away at each moment."""
    unread = door.head(extra=JSON + "Content-Length: 9\r\n").encode() + b"\r\n"
    hold = door.post({"model": "m", "how": "hold"})
    for raw, state in (
        (b"", "reading_head"),
        (unread, "reading_body"),
        (b"\x16\r\n\r\n", "lingering"),
        (hold, "awaiting_answer"),
    ):
        client = await send(door, raw)
        await states_are(door, state)
        client.writer.transport.abort()
        await states_are(door)
    running = await send(door, hold)
    await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
    leaver, waiting = await send(door, hold), await door.connect()
    await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
    leaver.writer.transport.abort()
    await parts.eventually(lambda: door.gateway.snapshot().queued == 0)
    waiting.writer.write(door.post())
    await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
    door.backend.release.set()
    for client in (running, waiting):
        assert (await client.read_answer()).status == 200
        await client.close()
    await states_are(door)


async def wait_for_a_backend(door: parts.Door, clock: parts.Clock) -> None:
    """Health checks that are held, and an answer that does not come."""
    backend = door.gateway.backend
    assert backend is not None
    door.gateway.detach()
    leaver = await send(door, door.get(HEALTH_PATH, extra=WAIT))
    await states_are(door, "awaiting_answer")
    leaver.writer.transport.abort()
    await states_are(door)
    held = await send(door, door.get(HEALTH_PATH, extra=WAIT))
    await states_are(door, "awaiting_answer")
    door.gateway.attach(backend)
    assert (await held.read_answer()).status == 200
    await held.close()
    door.backend.release.clear()
    late = await send(door, door.post({"model": "m", "how": "hold"}))
    await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
    clock.now += 9999
    assert (await late.read_answer()).status == 502
    await late.close()
    await states_are(door)


async def wait_for_an_observation(door: parts.Door) -> None:
    """Requests that come, and one that gets its place, while the newest observation is too old."""
    door.backend.release.clear()
    running = await send(door, door.post({"model": "m", "how": "hold"}))
    await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
    waiting = await send(door, door.post())
    await parts.eventually(lambda: door.gateway.snapshot().queued == 1)
    door.conditions.observe(None)
    door.backend.release.set()
    await parts.eventually(lambda: len(door.conditions.waiting) == 1)
    late = await send(door, door.get("/v1/models"))
    await parts.eventually(lambda: len(door.conditions.waiting) == 2)
    door.conditions.observe(parts.OK)
    for client in (running, waiting, late):
        assert (await client.read_answer()).status == 200
        await client.close()
    await states_are(door)


async def make_room(door: parts.Door) -> None:
    """More connections than there may be."""
    clients = [await door.connect() for _ in range(4)]
    refused = await clients[0].read_answer()
    assert refused.code == "connection_limit"
    for client in clients:
        await client.close()
    await states_are(door)


def test_the_running_gateway_makes_every_listed_transition_and_no_other(
    made: set[tuple[str, str, str]],
) -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(
            handler,
            clock=clock,
            served_model="m",  # what is translated is collected first, and can still be refused
            max_in_flight=1,
            max_connections=3,
            hold_seconds=9999,
        ) as door:
            await ask_in_every_way(door)
            await leave_in_every_state(door)
            await wait_for_a_backend(door, clock)
            await wait_for_an_observation(door)
            await make_room(door)

    asyncio.run(main())
    assert made - LISTED == set()
    assert LISTED - made == set()
