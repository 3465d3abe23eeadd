"""Backends that end connections at awkward moments: no request is lost, none is sent twice."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from typing import Any

import closing_backend as closing
import gateway_parts as parts
import pytest
from closing_backend import CHUNKED, WHOLE, ClosingBackend, run

from companion_core.decisions.guard import HEALTH_PATH
from companion_core.egress.live import LiveEgress
from companion_core.gateway import upstream
from companion_core.gateway.backend_connection import BackendConnection

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux certifies")
UNIX_AND_TCP = pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
ERROR = parts.answer(b"{}", status=b"404 Not Found")


async def ask_many(door: parts.Door, number: int) -> list[int]:
    """Ask again and again, each the moment that the one before has its answer."""
    client = await door.connect()
    client.writer.write(door.post() * number)
    answers = [(await client.read_answer()).status for _ in range(number)]
    await client.close()
    return answers


def counted(door: parts.Door, reason: str) -> int:
    """Return how many chats ended so, by the metrics."""
    return sum(
        int(line.rsplit(" ", 1)[1])
        for line in door.gateway.metrics_text().splitlines()
        if "_count{" in line and f'reason="{reason}"' in line and parts.CHAT in line
    )


@UNIX_AND_TCP
@pytest.mark.parametrize(
    "ending",
    [
        closing.at_once,
        closing.a_little_later,
        closing.unread,
        closing.shut_down_unread,
        closing.reset,
    ],
    ids=lambda ending: ending.__name__,
)
@pytest.mark.parametrize("answer", [CHUNKED, ERROR], ids=["chunked", "error"])
def test_what_may_end_after_an_answer_is_not_used_after_it(
    answer: bytes, ending: closing.Ending, unix: bool
) -> None:
    backend = ClosingBackend(answer, ending)

    async def life(door: parts.Door) -> None:
        status = 404 if answer is ERROR else 200
        assert await ask_many(door, 8) == [status] * 8
        assert len(backend.requests) == backend.connections == 8
        assert door.gateway.snapshot().in_flight == 0
        assert counted(door, "ok") == 8

    run(backend, life, unix=unix)


@UNIX_AND_TCP
@pytest.mark.parametrize(
    "answer",
    [
        parts.answer(extra=b"Connection: close\r\n"),
        parts.answer(extra=b"Connection: foo, Close\r\n"),
        parts.answer(extra=b"Keep-Alive: timeout=0\r\n"),
        parts.answer(extra=b"Keep-Alive: timeout=5, max=0\r\n"),
        WHOLE.replace(b"1.1", b"1.0"),
    ],
    ids=["close", "close in a list", "timeout=0", "max=0", "1.0"],
)
def test_what_was_announced_to_end_is_not_used_again(answer: bytes, unix: bool) -> None:
    backend = ClosingBackend(answer, closing.unread)

    async def life(door: parts.Door) -> None:
        assert await ask_many(door, 4) == [200] * 4
        assert len(backend.requests) == backend.connections == 4

    run(backend, life, unix=unix)


@UNIX_AND_TCP
def test_what_was_asked_to_end_is_not_used_again(unix: bool) -> None:
    """The backend ends it later, and does not say so in its answer."""
    backend = ClosingBackend(WHOLE, closing.unread)

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.get(HEALTH_PATH) + door.post(extra="Connection: close\r\n"))
        assert [(await client.read_answer()).status for _ in range(2)] == [200, 200]
        await client.close()
        assert len(backend.requests) == backend.connections == 2

    run(backend, life, unix=unix)


@pytest.mark.parametrize(
    ("extra", "seconds"),
    [(b"Keep-Alive: timeout=1\r\n", 0.6), (b"", 2.1)],
    ids=["announced", "own"],
)
def test_it_is_used_again_for_a_part_of_the_time_that_was_announced(
    extra: bytes, seconds: float
) -> None:
    clock = parts.Clock()
    backend = ClosingBackend(parts.answer(extra=extra))
    backend.per_connection = 100

    async def life(door: parts.Door) -> None:
        for passed, connections in ((0.0, 1), (0.4, 1), (seconds, 2)):
            clock.now += passed
            assert (await door.ask(door.post())).status == 200
            assert backend.connections == connections

    run(backend, life, unix=True, clock=clock)


@UNIX_AND_TCP
def test_a_backend_that_keeps_its_connections_is_learned(unix: bool) -> None:
    clock = parts.Clock()
    backend = ClosingBackend(CHUNKED)
    backend.per_connection = 100

    async def life(door: parts.Door) -> None:
        assert await ask_many(door, 2) == [200] * 2
        assert backend.connections == 2
        clock.now += upstream.SETTLE_SECONDS
        assert await ask_many(door, 8) == [200] * 8
        assert backend.connections == 2

    run(backend, life, unix=unix, clock=clock)


@UNIX_AND_TCP
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["whole", "chunked"])
def test_an_end_while_it_waits_is_noticed_in_the_same_moment(answer: bytes, unix: bool) -> None:
    """It has come, and the event loop has not looked yet."""
    backend = ClosingBackend(answer, closing.a_little_later)

    async def life(door: parts.Door) -> None:
        pool: Any = door.gateway.context.pool
        assert (await door.ask(door.post())).status == 200
        (kept,) = pool._idle + pool._settling
        kept.transport.pause_reading()
        await parts.eventually(lambda: not kept.is_silent())
        assert pool.take_idle(door.gateway.context.now() + 1) is None
        assert await ask_many(door, 4) == [200] * 4
        assert len(backend.requests) == backend.connections == 5

    run(backend, life, unix=unix)


UNREAD = [closing.unread, closing.shut_down_unread, closing.shut_down_and_held_up]


@on_linux
@pytest.mark.parametrize("ending", UNREAD)
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_was_closed_unread_on_a_unix_socket_is_sent_again(
    ending: closing.Ending, size: int
) -> None:
    """A whole answer is taken at its word once; what ends after it is learned from that."""
    backend = ClosingBackend(WHOLE, ending)

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        body = {"model": "m", "messages": "x" * size}
        for _ in range(4):
            client.writer.write(door.post(body))
            assert (await client.read_answer()).status == 200
        await client.close()
        assert len(backend.requests) == 4
        assert len(set(backend.requests)) == 1
        assert door.gateway.snapshot().in_flight == 0
        assert (counted(door, "ok"), counted(door, "upstream_failed")) == (4, 0)

    run(backend, life, unix=True)


@on_linux
@pytest.mark.parametrize("ending", UNREAD)
def test_what_was_closed_unread_is_sent_again_on_whichever_connection_it_came(
    ending: closing.Ending,
) -> None:
    """One that was made for a request may have been idle too, where this program was held up."""
    backend = ClosingBackend(WHOLE)
    backend.at_first = {0: ending}

    async def life(door: parts.Door) -> None:
        assert (await door.ask(door.post())).status == 200
        assert (len(backend.requests), backend.connections) == (1, 2)
        assert (counted(door, "ok"), counted(door, "upstream_failed")) == (1, 0)

    run(backend, life, unix=True)


class HeldUp(LiveEgress):
    """A connection is handed over only after the backend has had its time to end it."""

    async def connect_backend(self, factory: Any, channel: Any) -> Any:
        made = await super().connect_backend(factory, channel)
        await asyncio.sleep(0.05)
        return made


@UNIX_AND_TCP
@pytest.mark.parametrize(("ended", "status"), [(3, 200), (100, 502)])
@pytest.mark.parametrize("ending", [closing.at_once, closing.reset])
def test_a_connection_that_has_ended_before_its_request_is_made_again_a_few_times(
    ending: closing.Ending, ended: int, status: int, unix: bool
) -> None:
    backend = ClosingBackend(WHOLE)
    backend.at_first = dict.fromkeys(range(ended), ending)

    async def life(door: parts.Door) -> None:
        assert (await door.ask(door.post())).status == status
        assert backend.connections == (ended + 1 if status == 200 else upstream.CONNECTS)
        assert door.gateway.snapshot().in_flight == 0

    run(backend, life, unix=unix, egress=HeldUp())


@UNIX_AND_TCP
def test_a_request_to_a_backend_that_has_ended_its_connection_closes_no_descriptor_of_others(
    monkeypatch: pytest.MonkeyPatch, unix: bool
) -> None:
    """uvloop closes a socket again that it was given, if its transport ends while it is made."""
    backend = ClosingBackend(WHOLE)
    backend.at_first = {0: closing.at_once}
    made = BackendConnection.connection_made

    def late(connection: BackendConnection, transport: asyncio.BaseTransport) -> None:
        time.sleep(0.05)  # this program is held up while the backend ends the connection
        made(connection, transport)

    monkeypatch.setattr(BackendConnection, "connection_made", late)

    async def life(door: parts.Door) -> None:
        ours: list[int] = []
        await door.ask(door.post())
        ours += [
            os.open(os.devnull, os.O_RDONLY) for _ in range(20)
        ]  # they take the numbers that are free
        await asyncio.sleep(0.05)
        gc.collect()
        await asyncio.sleep(0.05)
        for descriptor in ours:
            os.close(descriptor)  # fails where another has closed it

    run(backend, life, unix=unix)


@on_linux
@pytest.mark.parametrize("ending", UNREAD)
def test_it_is_sent_again_once_where_no_connection_is_read(ending: closing.Ending) -> None:
    backend = ClosingBackend(WHOLE)
    backend.at_first = dict.fromkeys(range(100), ending)

    async def life(door: parts.Door) -> None:
        assert (await door.ask(door.post())).status == 502
        assert (len(backend.requests), backend.connections) == (0, 2)

    run(backend, life, unix=True)


def read_and_closed(backend: ClosingBackend) -> None:
    backend.per_connection, backend.answer_none_from = 100, 1


@UNIX_AND_TCP
@pytest.mark.parametrize("ending", [closing.at_once, closing.reset, closing.a_little_later])
def test_what_was_read_is_never_sent_again(ending: closing.Ending, unix: bool) -> None:
    backend = ClosingBackend(WHOLE, ending)
    read_and_closed(backend)

    async def life(door: parts.Door) -> None:
        assert await ask_many(door, 2) == [200, 502]
        assert (len(backend.requests), backend.connections) == (2, 1)
        assert (counted(door, "ok"), counted(door, "upstream_failed")) == (1, 1)
        assert door.gateway.snapshot().in_flight == 0

    run(backend, life, unix=unix)


@pytest.mark.parametrize("ending", [closing.unread, closing.shut_down_unread])
def test_how_a_connection_ends_certifies_nothing_on_tcp(ending: closing.Ending) -> None:
    backend = ClosingBackend(WHOLE, ending)

    async def life(door: parts.Door) -> None:
        assert await ask_many(door, 2) == [200, 502]
        assert await ask_many(door, 4) == [200] * 4  # and is learned from

    run(backend, life, unix=False)


@on_linux
@pytest.mark.parametrize("ending", [closing.unread, closing.shut_down_unread])
def test_it_is_sent_again_once(ending: closing.Ending) -> None:
    backend = ClosingBackend(WHOLE, closing.unread)
    backend.at_first = dict.fromkeys(range(1, 100), ending)

    async def life(door: parts.Door) -> None:
        assert await ask_many(door, 2) == [200, 502]
        assert (len(backend.requests), backend.connections) == (1, 2)
        assert door.gateway.snapshot().in_flight == 0

    run(backend, life, unix=True)


@UNIX_AND_TCP
@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE[:-1]])
def test_nothing_is_sent_again_once_a_byte_was_answered(part: bytes, unix: bool) -> None:
    backend = ClosingBackend(WHOLE)

    def speaks(connection: Any) -> None:
        closing.next_one_came(connection)
        connection.sendall(part)
        connection.close()

    backend.ending = speaks

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.post() * 2)
        assert (await client.read_answer()).status == 200
        second = await client.reader.read()
        assert b" 200 OK" in second if part == WHOLE[:-1] else b" 502 " in second
        await client.close()
        assert (len(backend.requests), backend.connections) == (1, 1)

    # The model has one name, so that a part of an answer is relayed as it comes.
    run(backend, life, unix=unix, idle_seconds=1, served_model="m")


@UNIX_AND_TCP
@pytest.mark.parametrize("ending", [closing.unread, closing.shut_down_unread, closing.reset])
def test_a_health_check_on_a_connection_made_ahead_is_asked_again(
    ending: closing.Ending, unix: bool
) -> None:
    backend = ClosingBackend(WHOLE)
    backend.at_first = {0: ending}

    async def life(door: parts.Door) -> None:
        attached = door.gateway.backend
        assert attached is not None
        door.gateway.expect(attached)
        door.gateway.connect_expected()
        await parts.eventually(lambda: backend.connections == 1)
        door.gateway.attach_expected()
        assert (await door.ask(door.get(HEALTH_PATH))).status == 200
        assert (len(backend.requests), backend.connections) == (1, 2)

    run(backend, life, unix=unix)


@on_linux
def test_a_client_that_leaves_during_a_resend_frees_its_place() -> None:
    backend, egress = ClosingBackend(WHOLE, closing.unread), parts.HoldableEgress()

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.post())
        assert (await client.read_answer()).status == 200
        egress.hold()
        client.writer.write(door.post())
        await egress.asked.wait()
        assert door.gateway.snapshot().in_flight == 1
        await client.close()
        await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)
        egress.free.set()
        pool = door.gateway.context.pool
        assert pool is not None
        await parts.eventually(lambda: not pool._connecting)
        assert len(backend.requests) == 1

    run(backend, life, unix=True, egress=egress)


@UNIX_AND_TCP
def test_nothing_is_sent_again_to_a_backend_that_was_detached(unix: bool) -> None:
    backend = ClosingBackend(WHOLE, closing.later)

    async def life(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.post() * 2)
        assert (await client.read_answer()).status == 200
        await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
        door.gateway.detach()
        assert (await client.read_answer()).status == 502
        await client.close()
        assert backend.connections == 1

    run(backend, life, unix=unix)


def test_two_requests_while_one_connection_is_made_ahead_have_two() -> None:
    backend, egress = ClosingBackend(WHOLE), parts.HoldableEgress()

    async def life(door: parts.Door) -> None:
        attached = door.gateway.backend
        assert attached is not None
        door.gateway.expect(attached)
        egress.hold()
        door.gateway.connect_expected()
        door.gateway.attach_expected()
        asked = [asyncio.create_task(door.ask(door.post())) for _ in range(3)]
        await parts.eventually(lambda: door.gateway.snapshot().in_flight == 3)
        egress.free.set()
        assert [(await each).status for each in asked] == [200] * 3
        assert (len(backend.requests), backend.connections) == (3, 3)

    run(backend, life, unix=True, max_in_flight=4, egress=egress)
