"""A companion's end: each step is undone once, whatever asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.serving.lifetime import Lifetime

pytestmark = pytest.mark.unit

Story = Callable[[Lifetime, list[str]], Coroutine[Any, Any, None]]


def play(story: Story) -> list[str]:
    """Return what was undone."""
    undone: list[str] = []

    async def life() -> None:
        await story(Lifetime(), undone)

    asyncio.run(life())
    return undone


def start_of(lifetime: Lifetime, undone: list[str]) -> Callable[[], Coroutine[Any, Any, None]]:
    async def start() -> None:
        lifetime.undo.callback(undone.append, "first")
        lifetime.undo.callback(undone.append, "second")

    return start


def test_what_was_done_is_undone_once_and_in_reverse() -> None:
    async def story(lifetime: Lifetime, undone: list[str]) -> None:
        await lifetime.begin(start_of(lifetime, undone)())
        assert undone == []
        await lifetime.close()
        await lifetime.close()

    assert play(story) == ["second", "first"]


def test_a_request_to_stop_undoes_it_where_nobody_closes() -> None:
    async def story(lifetime: Lifetime, undone: list[str]) -> None:
        await lifetime.begin(start_of(lifetime, undone)())
        lifetime.request_stop()
        async with asyncio.timeout(30):
            while len(undone) < 2:  # noqa: ASYNC110 - the undo sets no event
                await asyncio.sleep(0)
        assert not lifetime.stop_now.is_set()

    assert play(story) == ["second", "first"]


def test_a_stop_during_the_start_undoes_what_was_done() -> None:
    async def story(lifetime: Lifetime, undone: list[str]) -> None:
        async def start() -> None:
            await start_of(lifetime, undone)()
            lifetime.request_stop()
            await asyncio.Event().wait()

        with pytest.raises(CompanionError) as caught:
            await lifetime.begin(start())
        assert caught.value.reason is Reason.INTERRUPTED

    assert play(story) == ["second", "first"]


def test_a_start_that_fails_is_undone_before_its_error_is_raised() -> None:
    async def story(lifetime: Lifetime, undone: list[str]) -> None:
        async def start() -> None:
            await start_of(lifetime, undone)()
            raise CompanionError(Reason.NOT_READY)

        with pytest.raises(CompanionError) as caught:
            await lifetime.begin(start())
        assert caught.value.reason is Reason.NOT_READY
        assert undone == ["second", "first"]

    play(story)


def test_a_caller_cancelled_while_it_closes_is_in_a_hurry_and_everything_is_undone() -> None:
    async def story(lifetime: Lifetime, undone: list[str]) -> None:
        async def slow() -> None:
            await lifetime.stop_now.wait()
            undone.append("slow")

        await lifetime.begin(start_of(lifetime, undone)())
        lifetime.undo.push_async_callback(slow)
        closing = asyncio.ensure_future(lifetime.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing}, timeout=30)
        assert closing.cancelled()

    assert play(story) == ["slow", "second", "first"]
