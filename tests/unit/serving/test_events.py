"""What is told arrives once, in order, in one thread, and a slow reader learns what it lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from companion_core.serving.events import EVENTS, Announcer, Event, EventKind, EventStream
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

STOPPED = Event(kind=EventKind.STOPPED)


def noted(number: int) -> Event:
    return Event(kind=EventKind.RUNTIME_RESTORED, text=f"{number}")


def progress(done: int) -> Event:
    return Event(kind=EventKind.STEP, step=Step("download", "tiny", done, 100))


async def read(stream: EventStream) -> list[tuple[str, int]]:
    return [(event.text, event.missed) async for event in stream]


def test_every_kind_says_when_it_is_told() -> None:
    assert set(EVENTS) == set(EventKind)


def test_a_slow_reader_gets_the_newest_and_is_told_how_many_it_lost() -> None:
    async def life() -> list[tuple[str, int]]:
        stream = EventStream(bound=3)
        for number in range(5):
            stream.put(noted(number))
        stream.put(STOPPED)
        return await read(stream)

    assert asyncio.run(life()) == [("3", 3), ("4", 0), ("", 0)]


def test_what_is_lost_is_counted_once_for_each_gap() -> None:
    async def life() -> list[tuple[str, int]]:
        stream = EventStream(bound=2)
        for number in range(3):
            stream.put(noted(number))
        heard = [await anext(stream), await anext(stream)]
        for number in range(3, 6):
            stream.put(noted(number))
        stream.put(STOPPED)
        heard += [event async for event in stream]
        return [(event.text, event.missed) for event in heard]

    assert asyncio.run(life()) == [("1", 1), ("2", 0), ("5", 2), ("", 0)]


def test_progress_replaces_progress_and_is_no_loss() -> None:
    async def life() -> list[tuple[Any, int]]:
        stream = EventStream(bound=3)
        for done in range(10):
            stream.put(progress(done))
        stream.put(noted(1))
        stream.put(STOPPED)
        return [(event.step and event.step.done, event.missed) async for event in stream]

    assert asyncio.run(life()) == [(9, 0), (None, 0), (None, 0)]


def test_a_stream_that_has_ended_stays_ended() -> None:
    async def life() -> None:
        stream = EventStream()
        stream.put(STOPPED)
        assert await read(stream) == [("", 0)]
        assert await read(stream) == []

    asyncio.run(life())


def test_a_reader_that_waits_is_woken() -> None:
    async def life() -> list[tuple[str, int]]:
        stream = EventStream()
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        stream.put(noted(1))
        await asyncio.sleep(0)
        stream.put(STOPPED)
        return await reading

    assert asyncio.run(life()) == [("1", 0), ("", 0)]


def test_what_another_thread_tells_is_heard_in_the_loops_thread_and_in_order() -> None:
    heard: list[tuple[str, int]] = []

    async def life() -> None:
        announcer = Announcer(lambda step: heard.append((step.text, threading.get_ident())))
        announcer.step(Step("early", "nobody can hear this"))
        announcer.bind()
        texts = [f"{number}" for number in range(100)]

        def work() -> None:
            for text in texts:
                announcer.step(Step("model", text))

        await asyncio.to_thread(work)
        announcer.step(Step("model", "last"))
        assert heard == [(text, threading.get_ident()) for text in [*texts, "last"]]

    asyncio.run(life())


def test_what_a_callback_causes_is_told_after_it() -> None:
    heard: list[str] = []

    async def life() -> list[str]:
        def on_step(step: Step) -> None:
            if step.text == "first":
                announcer.step(Step("model", "second"))
                announcer.tell(STOPPED)
            heard.append(step.text)

        announcer = Announcer(on_step)
        announcer.bind()
        stream = announcer.stream()
        announcer.step(Step("model", "first"))
        return [event.kind async for event in stream]

    assert asyncio.run(life()) == ["step", "step", "stopped"]
    assert heard == ["first", "second"]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
def test_an_exception_of_a_callback_goes_to_the_loops_handler_and_the_next_step_is_told(
    kind,
) -> None:
    told: list[dict[str, Any]] = []
    heard: list[str] = []

    async def life() -> None:
        def on_step(step: Step) -> None:
            heard.append(step.text)
            raise kind

        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: told.append(what))
        announcer = Announcer(on_step)
        announcer.bind()
        for text in ("first", "second"):
            announcer.step(Step("model", text))

    asyncio.run(life())
    assert heard == ["first", "second"]
    assert [type(what["exception"]) for what in told] == [kind, kind]


def test_an_interrupt_in_a_callback_is_raised_and_leaves_the_rest_tellable() -> None:
    heard: list[str] = []

    async def life() -> None:
        def on_step(step: Step) -> None:
            heard.append(step.text)
            if step.text == "first":
                raise KeyboardInterrupt

        announcer = Announcer(on_step)
        announcer.bind()
        with pytest.raises(KeyboardInterrupt):
            announcer.step(Step("model", "first"))
        announcer.step(Step("model", "second"))

    asyncio.run(life())
    assert heard == ["first", "second"]


def test_a_worker_that_outlives_the_loop_tells_nobody_and_does_not_fail() -> None:
    async def life() -> Announcer:
        announcer = Announcer(None)
        announcer.bind()
        return announcer

    announcer = asyncio.run(life())
    announcer.tell(STOPPED)


def test_a_stream_that_nobody_holds_costs_nothing() -> None:
    async def life() -> int:
        announcer = Announcer(None)
        announcer.bind()
        announcer.stream()
        kept = announcer.stream()
        gc.collect()
        announcer.tell(STOPPED)
        assert await read(kept) == [("", 0)]
        return len(announcer._streams)

    assert asyncio.run(life()) == 1
