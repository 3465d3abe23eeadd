"""The order of steps in which a model is replaced, and what stays held meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from swap_parts import FULL, SMALL, FakeServing, held_model

from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.serving.model_source import HeldModel
from companion_core.serving.served_model import ServedModel

pytestmark = pytest.mark.unit


class Scene:
    """A served model "old", a proved one "new", and a log of all that happens."""

    def __init__(self) -> None:
        self.serving = FakeServing()
        self.log = self.serving.log
        self.old: HeldModel = held_model("old", self.log)
        self.new: HeldModel = held_model("new", self.log)
        self.hurry = asyncio.Event()
        self.served = ServedModel(
            self.serving,
            self.old,
            on_step=lambda _step: None,
            hurry=self.hurry,
            on_unwatched=lambda: self.log.append("unwatched"),
        )

    async def replace(self) -> None:
        await self.served.replace(self.new, lambda _step: None)

    async def refused(self) -> Reason:
        with pytest.raises(CompanionError) as caught:
            await self.replace()
        return caught.value.reason


async def until_nothing_else_runs() -> None:
    """Return when every other task has ended by itself."""
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})


def play(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> list[str]:
    """Return what happened after the old model was there."""

    async def life() -> Scene:
        scene = Scene()
        await scene.served.begin()
        scene.log.clear()
        await story(scene)
        await scene.served.unwatch()
        return scene

    return asyncio.run(life()).log


def test_the_old_model_is_closed_once_the_new_one_serves() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.size = SMALL
        await scene.replace()
        assert scene.served.model_id == "new"
        assert scene.served.verified
        assert scene.serving.size == FULL  # what the old one took says nothing about this one

    assert play(story) == ["drain 30", "stop", "start new", "let go of old"]


def test_a_new_model_that_does_not_start_is_closed_and_the_old_one_restarted() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.size = SMALL
        scene.serving.failing["new"] = EnvironmentUnavailable(Reason.START_TIMEOUT)
        assert await scene.refused() is Reason.START_TIMEOUT
        assert scene.served.model_id == "old"
        assert scene.served.verified
        assert scene.serving.size == SMALL

    assert play(story) == ["drain 30", "stop", "start new", "stop", "let go of new", "start old"]


def test_a_model_whose_runtime_did_not_stop_stays_held() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.failing["new"] = EnvironmentUnavailable(Reason.START_TIMEOUT)
        scene.serving.stops.extend([None, CompanionError(Reason.INTERNAL_FAULT)])
        assert await scene.refused() is Reason.INTERNAL_FAULT

    assert "let go of new" not in play(story)


def test_what_is_known_not_to_start_costs_the_old_one_nothing() -> None:
    async def too_large(scene: Scene) -> None:
        scene.serving.too_large = "new"
        assert await scene.refused() is Reason.RAM_OVER_LIMIT

    async def lost(scene: Scene) -> None:
        scene.new._on_writer()
        assert await scene.refused() is Reason.DIGEST_MISMATCH

    assert play(too_large) == ["let go of new"]
    assert "drain 30" not in play(lost)


def test_where_neither_starts_nothing_is_left_unwatched_and_the_first_reason_is_told() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.failing["new"] = EnvironmentUnavailable(Reason.START_TIMEOUT)
        scene.serving.failing["old"] = EnvironmentUnavailable(Reason.MEMORY_SHORT)
        assert await scene.refused() is Reason.START_TIMEOUT

    assert play(story)[-3:] == ["start old", "stop", "unwatched"]


def test_a_writer_gets_the_new_model_when_its_start_has_ended() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.failing["new"] = None
        scene.serving.starting.clear()
        swap = asyncio.ensure_future(scene.refused())
        await scene.serving.starting.wait()
        scene.new.leases._on_break()
        assert not scene.new.closed  # the runtime has it open
        assert await swap is Reason.DIGEST_MISMATCH
        assert scene.served.model_id == "old"

    log = play(story)
    assert log.index("start new") < log.index("stop", 2) < log.index("let go of new")
    assert "start old" in log


def test_a_writer_to_the_old_model_does_not_wait_for_its_answers() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.busy = True
        swap = asyncio.ensure_future(scene.replace())
        await scene.serving.draining.wait()
        scene.old.leases._on_break()
        await swap

    log = play(story)
    assert log.index("stop") < log.index("let go of old") < log.index("start new")


def test_a_writer_to_the_old_model_gets_in_while_the_new_one_starts() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.failing["new"] = None
        scene.serving.starting.clear()
        swap = asyncio.ensure_future(scene.replace())
        await scene.serving.starting.wait()
        assert not scene.old.closed
        scene.old.leases._on_break()
        assert scene.old.closed
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap

    assert "start old" not in play(story)


def test_a_hurry_ends_the_drain_and_no_second_drain_waits() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.busy = True
        swap = asyncio.ensure_future(scene.replace())
        await scene.serving.draining.wait()
        scene.served._drained_by = 0  # long ago
        scene.hurry.set()
        await swap
        scene.serving.busy = False
        scene.log.clear()
        await scene.served.drain()  # another model's
        scene.served._drained_by = 0
        await scene.served.drain()

    assert play(story) == ["drain 30", "drain 0"]


def test_a_model_that_a_writer_took_is_served_no_more_and_can_be_replaced() -> None:
    async def story(scene: Scene) -> None:
        scene.old.leases._on_break()
        assert not scene.served.verified
        while not scene.old.closed:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
        scene.log.append("then")
        await scene.replace()
        assert scene.served.verified

    assert play(story)[:3] == ["stop", "let go of old", "then"]


def test_a_watchdog_that_gives_up_is_told() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.watchdog.gives_up.set()
        while "unwatched" not in scene.log:  # noqa: ASYNC110 - a line in the log sets no event
            await asyncio.sleep(0)

    play(story)


def test_a_writer_that_takes_the_model_does_not_end_the_companion() -> None:
    async def story(scene: Scene) -> None:
        scene.old.leases._on_break()
        await until_nothing_else_runs()
        assert scene.old.closed

    assert play(story) == ["stop", "let go of old"]


def test_giving_a_model_up_is_finished_even_if_the_watch_is_cancelled() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.may_stop.clear()
        scene.old.leases._on_break()
        await scene.serving.stopping.wait()
        unwatch = asyncio.ensure_future(scene.served.unwatch())
        await asyncio.sleep(0)  # the watch is cancelled
        assert not unwatch.done()
        scene.serving.may_stop.set()
        await unwatch
        assert scene.old.closed

    assert play(story) == ["stop", "let go of old"]


def test_a_model_that_cannot_be_given_up_ends_the_companion() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.stops.append(LookupError())
        scene.old.leases._on_break()
        await until_nothing_else_runs()
        with pytest.raises(LookupError):
            await scene.served.unwatch()
        assert not scene.old.closed

    assert play(story) == ["unwatched"]


def test_what_ended_the_watch_is_raised_where_it_is_taken_over() -> None:
    async def unwatched(scene: Scene) -> None:
        scene.serving.watchdog.fault = LookupError()
        scene.serving.watchdog.gives_up.set()
        await until_nothing_else_runs()
        with pytest.raises(LookupError):
            await scene.served.unwatch()

    async def replaced(scene: Scene) -> None:
        scene.serving.watchdog.fault = LookupError()
        scene.serving.watchdog.gives_up.set()
        await until_nothing_else_runs()
        with pytest.raises(LookupError):
            await scene.replace()

    assert play(unwatched) == ["unwatched"]
    assert play(replaced) == ["unwatched", "let go of new"]


def test_a_stop_in_the_middle_starts_nothing() -> None:
    async def story(scene: Scene) -> None:
        scene.serving.busy = True
        swap = asyncio.ensure_future(scene.replace())
        await scene.serving.draining.wait()
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap

    assert play(story) == ["drain 30", "unwatched"]
