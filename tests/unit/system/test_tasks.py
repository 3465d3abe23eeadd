"""Work that an event may end early."""

from __future__ import annotations

import asyncio

import pytest

from companion_core.system.tasks import unless

pytestmark = pytest.mark.unit


def test_work_that_ends_first_has_ended() -> None:
    async def life() -> bool:
        return await unless(asyncio.sleep(0), asyncio.Event(), asyncio.Event())

    assert asyncio.run(life())


@pytest.mark.parametrize("which", [0, 1])
def test_an_event_ends_the_work_and_waits_for_its_clean_up(which) -> None:
    async def life() -> list[object]:
        events = [asyncio.Event(), asyncio.Event()]
        seen: list[object] = []

        async def work() -> None:
            events[which].set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                seen.append("cleaned up")

        seen.append(await unless(work(), *events))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return seen

    assert asyncio.run(life()) == ["cleaned up", False]


def test_an_error_of_the_work_is_raised() -> None:
    async def fail() -> None:
        raise LookupError

    async def life() -> None:
        with pytest.raises(LookupError):
            await unless(fail(), asyncio.Event())

    asyncio.run(life())


def test_a_cancellation_reaches_the_work_and_comes_back() -> None:
    async def life() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.ensure_future(unless(work(), asyncio.Event()))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(life())
