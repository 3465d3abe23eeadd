"""Time in which the process did not run is nobody else's silence."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from companion_core.system.deadline import call_with_deadline_async
from companion_core.system.running_clock import RunningClock, running_timeout

pytestmark = pytest.mark.unit


def test_a_jump_counts_as_one_step_and_time_never_steps_back() -> None:
    now = 1000.0
    clock = RunningClock(lambda: now)
    seen = [clock()]
    for passed in (0.5, 0.5, 45.0, 0.0, 0.5, 100.0, 0.5):
        now += passed
        seen.append(clock())
        clock.tick()
        seen.append(clock())
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] == pytest.approx(0.5 + 0.5 + 1 + 0.5 + 1 + 0.5)


def test_without_a_tick_it_stands_still_after_a_step() -> None:
    now = 0.0
    clock = RunningClock(lambda: now)
    now = 7.0
    assert clock() == 1.0


def test_an_answer_that_came_while_the_loop_stood_still_is_taken() -> None:
    async def life() -> str:
        released = threading.Event()

        def answer() -> str:
            assert released.wait(30)
            return "answer"

        asked = asyncio.ensure_future(call_with_deadline_async(answer, seconds=0.4))
        await asyncio.sleep(0.05)
        time.sleep(1)  # noqa: ASYNC251 - the standstill
        released.set()
        return await asked

    assert asyncio.run(life()) == "answer"


def test_what_never_answers_is_given_up_however_late_the_loop_always_is() -> None:
    async def life() -> None:
        async with running_timeout(0.4):
            while True:
                time.sleep(0.12)  # noqa: ASYNC251 - a loop that is always late
                await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(life(), 60))


def test_a_quick_answer_leaves_no_timer() -> None:
    async def life() -> None:
        async with running_timeout(30):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = getattr(asyncio.get_running_loop(), "_scheduled", [])
        assert [handle for handle in waiting if not handle.cancelled()] == []

    asyncio.run(life())
