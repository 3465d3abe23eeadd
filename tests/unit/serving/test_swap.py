"""One swap at a time: begun, followed, cancelled while that changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from swap_parts import held_model

from companion_core.errors import CompanionError, PluginFault, Reason
from companion_core.serving.status import SwapStatus
from companion_core.serving.step import Step
from companion_core.serving.swap import Swaps

pytestmark = pytest.mark.unit


class Scene:
    """Plays the source and the served model; both wait until they are let on."""

    def __init__(self) -> None:
        self.model_id, self.verified = "old", True
        self.log: list[str] = []
        self.proved, self.replaced = asyncio.Event(), asyncio.Event()
        self.replacing = asyncio.Event()
        self.fault: Exception | None = None
        self.swaps = Swaps("old", lambda step: self.log.append(step.name))
        self.swaps.open(self, self)

    async def obtain(self, model_id: str, on_step: Callable[[Step], None]) -> Any:
        on_step(Step("manifest", "version 1"))
        on_step(Step("download", model_id, 1, 2))
        await self.proved.wait()
        on_step(Step("model", "proved"))
        return held_model(model_id, self.log)

    async def replace(self, new: Any, _on_step: Callable[[Step], None]) -> None:
        self.replacing.set()
        await self.replaced.wait()
        if self.fault is not None:
            raise self.fault
        self.model_id = new.model.model_id

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return dict(await self.swaps.handlers[op]({"op": op, **arguments}))

    async def refused(self, op: str, **arguments: Any) -> Reason:
        with pytest.raises(CompanionError) as caught:
            await self.ask(op, **arguments)
        return caught.value.reason

    async def outcome(self, swap: str = "s") -> dict[str, Any]:
        while not (news := await self.ask("swap_news", swap=swap, seen=99))["ended"]:
            pass
        return news


def play(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def life() -> None:
        scene = Scene()
        await story(scene)
        await scene.swaps.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(life())


def test_a_follower_hears_each_step_once_and_how_it_ended() -> None:
    async def story(scene: Scene) -> None:
        assert await scene.ask("swap", swap="s", model="new") == {}
        news = await scene.ask("swap_news", swap="s", seen=0)
        assert [step["name"] for step in news["steps"]] == ["manifest"]
        assert (news["progress"]["done"], news["progress"]["total"]) == (1, 2)
        assert not news["ended"]
        scene.proved.set()
        scene.replaced.set()
        news = await scene.ask("swap_news", swap="s", seen=1)
        assert [step["name"] for step in news["steps"]] == ["model"]
        assert news["progress"] is None
        news = await scene.outcome()
        assert news["error"] is None
        assert scene.model_id == "new"
        assert scene.log == ["manifest", "download", "model"]

    play(story)


def test_a_follower_gets_an_answer_also_without_news() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("swap", swap="s", model="new")
        news = [await scene.ask("swap_news", swap="s", seen=1) for _ in range(3)]
        assert not any(each["ended"] or each["steps"] for each in news)

    play(story)


def test_status_tells_the_model_and_the_latest_step_of_a_swap() -> None:
    async def story(scene: Scene) -> None:
        assert scene.swaps.status() is None
        await scene.ask("swap", swap="s", model="new")
        assert scene.swaps.status() == SwapStatus(model="new", step=None)
        await scene.ask("swap_news", swap="s", seen=1)
        download = Step("download", "new", 1, 2)
        assert scene.swaps.status() == SwapStatus(model="new", step=download)
        scene.proved.set()
        await scene.replacing.wait()
        assert scene.swaps.status().step.name == "model"
        scene.replaced.set()
        await scene.outcome()
        assert scene.swaps.status() is None

    play(story)


def test_a_caller_that_heard_no_answer_may_ask_again() -> None:
    async def story(scene: Scene) -> None:
        scene.proved.set()
        scene.replaced.set()
        for _ in range(2):
            assert await scene.ask("swap", swap="s", model="new") == {}
        await scene.outcome()
        assert await scene.ask("swap", swap="s", model="new") == {}
        assert scene.log == ["manifest", "download", "model"]

    play(story)


def test_why_it_failed_is_told_with_what_is_known_beyond_the_reason() -> None:
    async def story(scene: Scene) -> None:
        scene.fault = PluginFault(Reason.PLAN_REFUSED, "p", "detail")
        scene.proved.set()
        scene.replaced.set()
        await scene.ask("swap", swap="s", model="new")
        assert (await scene.outcome())["error"] == {
            "reason": "plan_refused",
            "detail": "detail",
            "plugin": "p",
        }

    play(story)


def test_an_unexpected_fault_is_told_and_raised_by_close() -> None:
    async def life() -> None:
        scene = Scene()
        scene.fault = LookupError()
        scene.proved.set()
        scene.replaced.set()
        await scene.ask("swap", swap="s", model="new")
        assert (await scene.outcome())["error"]["reason"] == "internal_fault"
        with pytest.raises(LookupError):
            await scene.swaps.close()

    asyncio.run(life())


@pytest.mark.parametrize("pause", [None, 0.01], ids=["before its first step", "later"])
def test_it_is_cancelled_until_the_model_is_proved_and_then_no_more(pause) -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("swap", swap="s", model="new")
        if pause is not None:
            await asyncio.sleep(pause)
        assert await scene.ask("swap_cancel", swap="s") == {"cancelled": True}
        assert (await scene.outcome())["error"]["reason"] == "interrupted"
        scene.proved.set()
        await scene.ask("swap", swap="t", model="new")
        await scene.replacing.wait()
        assert await scene.ask("swap_cancel", swap="t") == {"cancelled": False}
        scene.replaced.set()
        assert (await scene.outcome("t"))["error"] is None

    play(story)


def test_a_second_one_and_the_model_that_is_served_are_refused() -> None:
    async def story(scene: Scene) -> None:
        assert await scene.refused("swap", swap="s", model="old") is Reason.ALREADY_RUNNING
        await scene.ask("swap", swap="s", model="new")
        for model in ("new", "third"):
            refusal = await scene.refused("swap", swap="t", model=model)
            assert refusal is Reason.SWAP_IN_PROGRESS
        assert await scene.refused("swap_cancel", swap="t") is Reason.USAGE

    play(story)


def test_a_model_that_a_writer_took_can_be_obtained_again() -> None:
    async def story(scene: Scene) -> None:
        scene.verified = False
        assert await scene.ask("swap", swap="s", model="old") == {}

    play(story)


def test_the_end_of_one_is_told_when_the_next_has_begun() -> None:
    async def story(scene: Scene) -> None:
        scene.proved.set()
        scene.replaced.set()
        await scene.ask("swap", swap="s", model="new")
        await scene.outcome()
        await scene.ask("swap", swap="t", model="third")
        assert (await scene.ask("swap_news", swap="s", seen=0))["ended"]

    play(story)


@pytest.mark.parametrize("swap", [None, 5, "", "s" * 257])
def test_a_swap_without_a_name_or_a_model_is_refused(swap) -> None:
    async def story(scene: Scene) -> None:
        assert await scene.refused("swap", swap=swap, model="new") is Reason.USAGE
        assert await scene.refused("swap", swap="s", model=swap) is Reason.USAGE
        assert scene.log == []

    play(story)


@pytest.mark.parametrize("seen", [None, -1, True, "0", 1.5])
def test_malformed_questions_are_refused(seen) -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("swap", swap="s", model="new")
        assert await scene.refused("swap_news", swap="s", seen=seen) is Reason.USAGE
        assert await scene.refused("swap_news", seen=0) is Reason.USAGE

    play(story)


def test_before_it_is_open_and_once_it_is_closed_nothing_is_begun() -> None:
    async def life() -> None:
        swaps = Swaps("old", lambda _step: None)

        def refusal(model_id: str) -> Reason:
            with pytest.raises(CompanionError) as caught:
                swaps.begin("s", model_id)
            return caught.value.reason

        assert (refusal("old"), refusal("new")) == (Reason.ALREADY_RUNNING, Reason.NOT_READY)
        await swaps.close()
        assert (refusal("old"), refusal("new")) == (Reason.NOT_READY, Reason.NOT_READY)

    asyncio.run(life())


def test_closing_ends_a_swap_at_any_step() -> None:
    async def story(scene: Scene) -> None:
        scene.proved.set()
        await scene.ask("swap", swap="s", model="new")
        await scene.replacing.wait()
        await scene.swaps.close()
        assert (await scene.outcome())["error"]["reason"] == "interrupted"

    play(story)


@pytest.mark.parametrize("proved", [False, True])
def test_a_cancelled_caller_cancels_a_swap_that_changed_nothing_and_outlasts_others(
    proved,
) -> None:
    async def story(scene: Scene) -> None:
        task = asyncio.ensure_future(scene.swaps.carry_out("new"))
        await asyncio.sleep(0)
        if proved:
            scene.proved.set()
            await scene.replacing.wait()
        task.cancel()
        await asyncio.sleep(0)
        scene.replaced.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scene.model_id == ("new" if proved else "old")

    play(story)
