"""A health check through the front door, and the connection that is made for it ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.decisions.verdict import OK
from companion_core.errors import Reason
from companion_core.gateway import health
from companion_core.providers import HealthResponse

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


def exploding(_response: HealthResponse) -> bool:
    raise SystemExit(3)


def test_health_goes_through_the_front_door(monkeypatch) -> None:
    seen: list[HealthResponse] = []

    def remember(response: HealthResponse) -> bool:
        seen.append(response)
        return response.status == 200

    async def main() -> None:
        async with parts.open_door() as door:
            door.conditions.lifecycle_verdict = parts.refuse_not_ready()
            assert await door.probe(remember).probe() == OK
            assert seen[0] == HealthResponse(status=200, body=b'{"ok":true}', served_model="served")
            assert door.backend.requests[0].startswith(b"GET /health HTTP/1.1\r\n")
            assert b"Authorization: Bearer " + b"k" * 43 in door.backend.requests[0]
            for judge in (exploding, lambda _: 1, lambda _: 1 / 0):
                assert (await door.probe(judge).probe()).reason is Reason.HEALTH_FAILED
            assert not (await door.probe(remember, token="x" * 43).probe()).ok

            def no_thread(*_args: Any) -> None:
                raise RuntimeError

            with monkeypatch.context() as short:
                short.setattr(health, "start_call", no_thread)
                probe = door.probe(remember)
                assert (await probe.probe()).reason is Reason.HEALTH_FAILED
                assert not probe.judge_failed

            door.gateway.detach()
            assert (await door.probe(remember).probe()).reason is Reason.HEALTH_FAILED

    asyncio.run(main())


def test_a_probe_takes_the_connection_made_ahead_or_makes_one() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            opened: list[Any] = []
            door.gateway.context.connections = parts.NotedConnections(opened.append)
            probe = door.probe()

            async def until(reached: Callable[[], Any]) -> None:
                while not reached():  # noqa: ASYNC110 - a pool has no event
                    await asyncio.sleep(0.001)

            async def ahead() -> Any:
                before = len(opened)
                probe.connect_ahead()
                probe.connect_ahead()
                pool = probe._ahead
                assert pool is not None
                await until(lambda: len(opened) > before and pool.unused)
                return opened[-1]

            async def cut_ahead() -> None:
                (await ahead()).transport.abort()
                pool = probe._ahead
                assert pool is not None
                await until(lambda: pool.is_empty)

            made = await ahead()
            assert await probe.probe() == OK
            assert opened == [made]

            await cut_ahead()
            assert await probe.probe() == OK
            assert len(opened) == 3

            await cut_ahead()
            made = await ahead()  # anew
            assert await probe.probe() == OK
            assert opened[4:] == [made]

            await ahead()
            probe.close()
            await until(lambda: not door.gateway.context.connections)
            assert await probe.probe() == OK
            assert len(opened) == 7

    asyncio.run(main())
