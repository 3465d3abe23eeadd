"""Every path but the health check passes the same order: guard, lifecycle, admission, resources."""

from __future__ import annotations

import asyncio

import gateway_parts as parts
import pytest

from companion_core.decisions.guard import HEALTH_PATH

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


def paths(door: parts.Door) -> list[bytes]:
    """A request to every path that is served, with a body that is right and one that is not."""
    routes = door.gateway.context.policy.routes
    return [
        request
        for path, method in routes.items()
        if path != HEALTH_PATH
        for request in (
            [door.get(path)]
            if method == "GET"
            else [door.post(path=path), door.post(b"{", path=path), door.post({"model": "x"})]
        )
    ]


def test_without_a_runtime_that_is_ready_no_path_answers() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=10_000) as door:
            for refuse, code in (
                (parts.refuse_not_ready(), "not_ready"),
                (parts.refuse_ram(), "ram_over_limit"),
            ):
                if code == "not_ready":
                    door.conditions.lifecycle_verdict = refuse
                else:
                    door.conditions.lifecycle_verdict = parts.OK
                    door.conditions.resource_verdict = refuse
                for request in paths(door):
                    answer = await door.ask(request)
                    assert (answer.status, answer.code) == (503, code), request
                    assert int(answer.headers["retry-after"]) > 0
            door.conditions.resource_verdict = parts.OK
            door.gateway.detach()
            for request in paths(door):
                assert (await door.ask(request)).code == "not_ready"
            assert door.backend.requests == []

    asyncio.run(main())


def test_a_full_queue_refuses_on_every_path_and_a_busy_runtime_still_lists_its_model() -> None:
    async def main() -> None:
        async with parts.open_door(
            parts.answer_when_released, max_in_flight=1, queue_bound=1, requests_per_minute=10_000
        ) as door:
            running = await door.ask_running()
            assert (await door.ask(door.get("/v1/models"))).status == 200
            waiting = await door.ask_waiting()
            for request in paths(door):
                answer = await door.ask(request)
                assert (answer.status, answer.code) == (503, "queue_full"), request
            door.backend.release.set()
            assert [(await each).status for each in (running, waiting)] == [200, 200]

    asyncio.run(main())
