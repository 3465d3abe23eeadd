"""What a product hears of its companion: in which thread, in which order, and after the start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Any

import pytest
import swap_world

from companion_core import Companion, CompanionError, Event, EventKind, Reason, Step
from companion_core.authority import memory_keychain
from companion_core.providers import KeychainUnavailable
from companion_core.serving import watches

pytestmark = pytest.mark.integration

SECONDS = 60


async def until(stream, *kinds: EventKind) -> list[Event]:
    """Return the events up to the first of one of these kinds."""
    heard: list[Event] = []
    async with asyncio.timeout(SECONDS):
        async for event in stream:
            heard.append(event)
            if event.kind in kinds:
                return heard
    raise AssertionError(f"{kinds} did not come: {heard}")


def kinds_of(events: list[Event]) -> list[EventKind]:
    return [event.kind for event in events if event.kind is not EventKind.STEP]


def test_the_callback_is_called_in_the_loops_thread_one_at_a_time_and_in_order(world) -> None:
    world.publish()
    threads: set[int] = set()
    steps: list[Step] = []
    inside = 0

    def on_step(step: Step) -> None:
        nonlocal inside
        assert inside == 0
        inside += 1
        threads.add(threading.get_ident())
        steps.append(step)
        if step.name == "available":
            companion.request_stop()  # what it asks for is told after this call
        inside -= 1

    companion = Companion.open(world.config(), state_dir=world.state, on_step=on_step)

    async def life() -> int:
        stream = companion.events()
        with contextlib.suppress(CompanionError):
            async with companion:
                pass
        heard = [event.step async for event in stream if event.kind is EventKind.STEP]
        told = [step for step in heard if step is not None and not step.total]
        assert told == [step for step in steps if not step.total]
        return threading.get_ident()

    assert threads == {asyncio.run(life())}
    names = [step.name for step in steps]
    assert "download" in names
    assert names.index("download") < names.index("model")


def test_an_exception_in_the_callback_ends_no_start_and_reaches_the_loops_handler(world) -> None:
    world.publish()
    raised: list[dict[str, Any]] = []
    count = 0

    def on_step(step: Step) -> None:
        nonlocal count
        count += 1
        raise asyncio.CancelledError if step.name == "download" else ValueError(step.name)

    async def life() -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, told: raised.append(told))
        async with Companion.open(
            world.config(), state_dir=world.state, on_step=on_step
        ) as companion:
            return companion.availability().ok

    assert asyncio.run(life())
    assert count == len(raised) > 5
    assert {type(told["exception"]) for told in raised} == {ValueError, asyncio.CancelledError}
    assert world.wait_until_alone() == []


def test_a_runtime_that_dies_is_told_with_what_follows(world) -> None:
    world.publish()

    async def life() -> tuple[list[Event], list[Event]]:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            stream = companion.events()
            runtime = companion.status().runtime
            assert runtime is not None
            os.kill(runtime.pid, signal.SIGKILL)
            heard = await until(stream, EventKind.RUNTIME_RESTORED)
            assert companion.availability().ok
        return heard, [event async for event in stream]

    heard, rest = asyncio.run(life())
    assert kinds_of(heard) == ["runtime_ended", "runtime_restarting", "runtime_restored"]
    ended = next(event for event in heard if event.kind is EventKind.RUNTIME_ENDED)
    assert (ended.reason, ended.missed) == (Reason.RUNTIME_EXITED, 0)
    assert "9" in ended.text or "SIGKILL" in ended.text
    assert kinds_of(rest) == ["stopping", "stopped"]


def test_swaps_are_told_with_their_model(world) -> None:
    world.publish()
    swap_world.publish(world)

    async def life() -> list[Event]:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            stream = companion.events()
            with pytest.raises(CompanionError):
                await companion.swap_model("unheard-of")
            await companion.swap_model("other")
            return await until(stream, EventKind.MODEL_SWAPPED)

    heard = [event for event in asyncio.run(life()) if event.kind is not EventKind.STEP]
    assert [(event.kind, event.model, event.reason) for event in heard] == [
        (EventKind.SWAP_FAILED, "unheard-of", Reason.MODEL_NOT_IN_MANIFEST),
        (EventKind.MODEL_SWAPPED, "other", Reason.OK),
    ]


def test_refusals_for_want_of_room_are_told_and_their_end(world, monkeypatch) -> None:
    monkeypatch.setattr(watches, "LOOK_SECONDS", 0.05)
    world.publish()
    config = world.config(gateway={"requests_per_minute": 5})

    async def life() -> tuple[list[Event], set[int]]:
        async with Companion.open(config, state_dir=world.state) as companion:
            stream, client = companion.events(), companion.http_client()
            statuses = {(await client.get("/models")).status_code for _ in range(20)}
            return await until(stream, EventKind.OVERLOAD_ENDED), statuses

    heard, statuses = asyncio.run(life())
    assert statuses == {200, 429}
    first, *_, last = heard
    assert (first.kind, first.reason) == (EventKind.OVERLOADED, Reason.RATE_LIMITED)
    assert kinds_of(heard) == ["overloaded", "overload_ended"]
    assert "requests" in last.text


def test_a_keychain_that_locks_meanwhile_is_told_and_what_is_left_in_it(world, monkeypatch) -> None:
    monkeypatch.setattr(watches, "KEYCHAIN_SECONDS", 0.1)
    world.publish()
    locked = threading.Event()
    status, delete = memory_keychain.MemoryKeychain.status, memory_keychain.MemoryKeychain.delete

    def look(self):
        if not locked.is_set():
            return status(self)
        return type(status(self))(ok=False, reason=Reason.KEYCHAIN_LOCKED)

    def remove(self, account):
        if locked.is_set():
            raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
        delete(self, account)

    monkeypatch.setattr(memory_keychain.MemoryKeychain, "status", look)
    monkeypatch.setattr(memory_keychain.MemoryKeychain, "delete", remove)

    async def life() -> tuple[list[Event], list[Event]]:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            stream = companion.events()
            locked.set()
            heard = await until(stream, EventKind.KEYCHAIN_UNAVAILABLE)
            assert companion.availability().ok
            locked.clear()
            heard += await until(stream, EventKind.KEYCHAIN_RESTORED)
            monkeypatch.setattr(watches, "KEYCHAIN_SECONDS", 3600)
            locked.set()
        return heard, [event async for event in stream]

    heard, rest = asyncio.run(life())
    assert [(event.kind, event.reason) for event in heard] == [
        (EventKind.KEYCHAIN_UNAVAILABLE, Reason.KEYCHAIN_LOCKED),
        (EventKind.KEYCHAIN_RESTORED, Reason.OK),
    ]
    left = [event for event in rest if event.kind is EventKind.KEYCHAIN_UNAVAILABLE]
    assert "token" in left[-1].text


def test_a_start_that_is_refused_ends_every_stream(world) -> None:
    world.publish()
    config = world.config(model={"id": "unheard-of"})

    async def life() -> list[Event]:
        companion = Companion.open(config, state_dir=world.state)
        stream = companion.events()
        with pytest.raises(CompanionError):
            async with companion:
                raise AssertionError
        return [event async for event in stream]

    heard = asyncio.run(life())
    assert heard[-1].kind is EventKind.STOPPED
    assert any(event.kind is EventKind.STEP for event in heard)


def test_it_is_available_only_while_its_token_is_stored(world) -> None:
    world.publish()

    async def life() -> list[Reason]:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            reasons = [companion.availability().reason]
            assert companion._token is not None
            await companion._token.clear()
            return [*reasons, companion.availability().reason]

    assert asyncio.run(life()) == [Reason.OK, Reason.TOKEN_NOT_STORED]
