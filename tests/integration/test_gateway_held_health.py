"""A health check that would rather wait (RFC 7240) is held until there is a backend to ask."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.decisions.guard import HEALTH_PATH
from companion_core.decisions.verdict import OK
from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason
from companion_core.gateway import Backend
from companion_core.gateway.exchange import MAX_HELD_CHECKS
from companion_core.providers import OPENAI_ROUTES, TcpChannel, UnixChannel

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

WAIT = "Prefer: wait=30\r\n"


def run(life: Callable[[parts.Door, Backend], Awaitable[None]], **settings: Any) -> None:
    """Run `life` with a gateway whose backend has just been taken away."""

    async def main() -> None:
        async with parts.open_door(**settings) as door:
            backend = door.gateway.backend
            assert backend is not None
            door.gateway.detach()
            await life(door, backend)
            assert not door.gateway.context.held_checks

    asyncio.run(main())


async def held(door: parts.Door, number: int = 1) -> None:
    await parts.eventually(lambda: len(door.gateway.context.held_checks) == number)


def test_a_held_check_is_answered_by_the_backend_that_comes() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        asked = [asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra=WAIT))) for _ in range(3)]
        await held(door, 3)
        door.gateway.expect(backend)
        await asyncio.sleep(0.05)
        assert door.backend.connections == 0  # nothing is sent to one that is only expected
        door.gateway.attach_expected()
        assert [(await each).status for each in asked] == [200] * 3
        assert [each.split(b" ")[1] for each in door.backend.requests] == [b"/health"] * 3

    run(life)


def test_without_the_preference_a_check_is_refused_at_once() -> None:
    async def life(door: parts.Door, _backend: Backend) -> None:
        for preference in ("", "Prefer: respond-async\r\n", "Prefer: wait=0\r\n"):
            refused = await door.ask(door.get(HEALTH_PATH, extra=preference))
            assert (refused.status, refused.code) == (503, "not_ready")

    run(life)


def test_a_check_is_held_no_longer_than_the_gateway_allows() -> None:
    async def life(door: parts.Door, _backend: Backend) -> None:
        for preference in ("Prefer: wait=1\r\n", WAIT):
            refused = await door.ask(door.get(HEALTH_PATH, extra=preference))
            assert (refused.status, refused.code) == (503, "not_ready")

    run(life, hold_seconds=1)


def test_a_check_is_held_no_longer_than_it_prefers() -> None:
    async def life(door: parts.Door, _backend: Backend) -> None:
        refused = await door.ask(door.get(HEALTH_PATH, extra="Prefer: wait=1\r\n"))
        assert (refused.status, refused.code) == (503, "not_ready")

    run(life)


async def silent(backend: parts.FakeBackend, *_: object) -> None:
    await backend.release.wait()


def test_a_backend_that_came_has_the_usual_time_to_answer() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        asked = asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra=WAIT)))
        await held(door)
        door.gateway.attach(backend)
        assert (await asked).code == "upstream_failed"

    run(life, handler=silent, health_seconds=1)


def test_an_expected_backend_that_is_gone_is_not_attached() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        door.gateway.expect(backend)
        door.gateway.detach()
        door.gateway.attach_expected()
        assert door.gateway.backend is None
        assert (await door.ask(door.get(HEALTH_PATH))).code == "not_ready"
        assert door.backend.connections == 0

    run(life)


def test_the_guard_admits_the_paths_of_the_expected_backend() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        routes = tuple(route for route in OPENAI_ROUTES if route.path == parts.CHAT)
        door.gateway.attach(replace(backend, routes=routes))
        # The guard says so, before the body is looked at.
        refused = await door.ask(door.post(b"{", path="/v1/embeddings"))
        assert refused.code == "path_not_allowed"
        assert (await door.ask(door.post())).status == 200

    run(life)


def test_a_connection_made_ahead_serves_any_request() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        door.gateway.expect(backend)
        door.gateway.connect_expected()
        await parts.eventually(lambda: door.backend.connections == 1)
        door.gateway.attach_expected()
        assert (await door.ask(door.post())).status == 200
        assert door.backend.connections == 1

    run(life)


def test_a_connection_that_is_just_being_made_is_waited_for() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        asked = asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra=WAIT)))
        await held(door)
        door.gateway.expect(backend)
        door.gateway.connect_expected()
        door.gateway.attach_expected()  # in the same turn of the event loop
        assert (await asked).status == 200
        assert door.backend.connections == 1
        assert (await door.ask(door.post())).status == 200

    run(life)


def test_a_connection_that_cannot_be_made_fails_its_request_and_no_later_one(tmp_path) -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        asked = asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra=WAIT)))
        await held(door)
        nothing = UnixChannel(path=str(tmp_path / "nothing"))
        door.gateway.expect(replace(backend, channel=nothing))
        door.gateway.connect_expected()
        door.gateway.attach_expected()
        assert (await asked).code == "upstream_failed"
        assert (await door.ask(door.get(HEALTH_PATH))).code == "upstream_failed"
        door.gateway.attach(backend)
        assert (await door.ask(door.get(HEALTH_PATH))).status == 200

    run(life)


def test_after_a_failed_connection_made_ahead_another_is_made(tmp_path) -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        assert isinstance(backend.channel, TcpChannel)
        closed = socket.create_server(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        door.gateway.expect(replace(backend, channel=TcpChannel(host="127.0.0.1", port=port)))
        door.gateway.connect_expected()
        pool = door.gateway.context.pool
        assert pool is not None
        await parts.eventually(lambda: pool.is_empty)
        door.gateway.attach_expected()
        assert (await door.ask(door.get(HEALTH_PATH))).code == "upstream_failed"

    run(life)


def test_a_request_after_the_first_has_a_connection_of_its_own() -> None:
    """The first one is on its way as soon as there is a connection, which may not be known yet."""

    class Slow(LiveEgress):
        async def connect_backend(self, factory: Any, channel: Any) -> Any:
            made = await super().connect_backend(factory, channel)
            await asyncio.sleep(0.1)
            return made

    async def life(door: parts.Door, backend: Backend) -> None:
        door.gateway.expect(backend)
        door.gateway.connect_expected()
        door.gateway.attach_expected()
        pool, first = (
            door.gateway.context.pool,
            asyncio.create_task(door.ask(door.get(HEALTH_PATH))),
        )
        assert pool is not None
        await parts.eventually(lambda: door.backend.connections == 1)
        assert pool._connecting
        assert (await door.ask(door.get(HEALTH_PATH))).status == 200
        assert (await first).status == 200

    run(life, egress=Slow())


def test_a_connection_made_ahead_is_closed_for_a_backend_that_serves_one() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        door.gateway.expect(backend)
        door.gateway.connect_expected()
        await parts.eventually(lambda: door.backend.connections == 1)
        before = door.gateway.context.pool
        door.gateway.disconnect_expected()
        assert before is not None
        await parts.eventually(lambda: before.is_empty)
        assert door.gateway.backend is None  # and nothing is sent to it yet
        door.gateway.attach_expected()
        assert (await door.ask(door.post())).status == 200
        assert door.backend.connections == 2

    run(life)


def test_a_check_without_the_token_is_not_held() -> None:
    async def life(door: parts.Door, _backend: Backend) -> None:
        refused = await door.ask(door.get(HEALTH_PATH, extra=WAIT, token="x" * 43))
        assert refused.status == 401

    run(life)


def test_the_check_of_a_client_that_leaves_is_held_no_more() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        client = await door.connect()
        client.writer.write(door.get(HEALTH_PATH, extra=WAIT))
        await held(door)
        await client.close()
        await held(door, 0)
        door.gateway.attach(backend)
        assert (await door.ask(door.get(HEALTH_PATH))).status == 200
        assert len(door.backend.requests) == 1

    run(life)


def test_the_connection_goes_on_after_the_answer() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        client = await door.connect()
        client.writer.write(door.get(HEALTH_PATH, extra=WAIT) + door.get("/v1/models"))
        await held(door)
        door.gateway.attach(backend)
        assert [(await client.read_answer()).status for _ in range(2)] == [200, 200]
        await client.close()

    run(life)


def test_a_probe_that_asked_ahead_does_not_ask_again() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        probe = door.probe()
        probe.ask_ahead()
        await held(door)
        door.gateway.expect(backend)
        door.gateway.connect_expected()
        await parts.eventually(lambda: door.backend.connections == 1)
        door.gateway.connect_expected()
        door.gateway.attach_expected()
        assert await probe.probe() == OK
        assert (len(door.backend.requests), door.backend.connections) == (1, 1)
        assert await probe.probe() == OK
        assert (len(door.backend.requests), door.backend.connections) == (2, 2)

    run(life)


def test_only_so_many_checks_are_held() -> None:
    async def life(door: parts.Door, backend: Backend) -> None:
        asked = [
            asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra=WAIT)))
            for _ in range(MAX_HELD_CHECKS + 2)
        ]
        await parts.eventually(lambda: sum(each.done() for each in asked) == 2)
        assert {each.result().code for each in asked if each.done()} == {"not_ready"}
        await held(door, MAX_HELD_CHECKS)
        door.gateway.attach(backend)
        answers = [(await each).status for each in asked]
        assert sorted(answers) == [200] * MAX_HELD_CHECKS + [503] * 2

    run(life)


def test_the_time_it_was_held_does_not_count_as_time_to_answer() -> None:
    clock = parts.Clock()

    async def life(door: parts.Door, backend: Backend) -> None:
        asked = asyncio.create_task(door.ask(door.get(HEALTH_PATH, extra="Prefer: wait=9999\r\n")))
        await held(door)
        clock.now += 3600
        door.gateway.attach(backend)
        assert (await asked).status == 200
        (seconds,) = re.findall(
            r"request_seconds_sum\{[^}]*health[^}]*\} (\S+)", door.gateway.metrics_text()
        )
        assert float(seconds) < 3600

    run(life, clock=clock, hold_seconds=9999)


def test_an_old_answer_does_not_count_and_a_held_check_is_taken_back() -> None:
    clock = parts.Clock()  # else one that is held could be refused before it is seen

    async def life(door: parts.Door, backend: Backend) -> None:
        probe = door.probe()
        probe.ask_ahead()
        await held(door)
        asked = probe._asked
        assert asked is not None
        clock.now += 3600
        assert await asked.complete
        assert asked.status == 503
        door.gateway.attach(backend)
        assert await probe.probe() == OK
        door.gateway.detach()

        probe.ask_ahead()
        await held(door)
        probe.ask_ahead()
        await held(door)
        probe.close()
        await held(door, 0)
        assert (await probe.probe()).reason is Reason.HEALTH_FAILED

    run(life, clock=clock)
