"""When a runtime counts as listening, and what ends the wait for it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.start import readiness

pytestmark = pytest.mark.unit


def test_a_look_that_would_have_to_wait_is_made_in_a_thread(monkeypatch) -> None:
    threads = []

    def look(_watched, *, wait=True):
        threads.append(threading.current_thread())
        if not wait:
            raise BlockingIOError
        return OK

    monkeypatch.setattr(readiness, "read_back", look)
    assert asyncio.run(readiness._read_back(watched())) is OK
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False]


def test_after_a_long_look_the_next_one_is_made_in_a_thread(monkeypatch) -> None:
    threads = []

    def look(_watched, **_):
        threads.append(threading.current_thread())
        return OK

    async def looks() -> None:
        runtime = watched()
        for runtime.long_look in (-1, -1, 60, 60):
            assert await readiness._read_back(runtime) is OK

    monkeypatch.setattr(readiness, "read_back", look)
    asyncio.run(looks())
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False, False, True]


def test_a_living_runtime_without_an_environment_is_looked_at_again(monkeypatch) -> None:
    """While it is being executed, psutil shows no environment of it."""
    verdicts = [refuse(Reason.NOT_RUNNING), OK]
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: verdicts.pop(0))

    async def life() -> list[bool]:
        runtime = watched(process=process(), require=lambda _verdict: None, patience=0.01)
        return [await readiness._is_as_planned(runtime) for _ in range(2)]

    assert asyncio.run(life()) == [False, True]


def test_what_the_system_does_not_tell_is_asked_again_and_not_for_ever(monkeypatch) -> None:
    unsaid = refuse(Reason.PROCESS_UNREADABLE)
    verdicts = [unsaid, unsaid, OK]
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: verdicts.pop(0))
    assert asyncio.run(readiness._read_back(watched())) is OK
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: unsaid)
    assert asyncio.run(readiness._read_back(watched(patience=0.1))) is unsaid


def watched(**fields: Any) -> Any:
    return SimpleNamespace(**{"takes_long": False, "long_look": 60, "patience": 1, **fields})


def process() -> Any:
    return SimpleNamespace(exited=asyncio.Event(), exit_code=None, for_memory=False)


def test_work_that_succeeds_for_a_runtime_that_has_ended_does_not_count() -> None:
    async def life() -> None:
        runtime, faults = process(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

        async def work() -> int:
            runtime.exited.set()
            return 3

        with pytest.raises(EnvironmentUnavailable) as caught:
            await readiness.unless_exited(runtime, work())
        assert caught.value.reason is Reason.RUNTIME_EXITED
        for _ in range(5):
            await asyncio.sleep(0)  # no fault comes later
        assert faults == []

    asyncio.run(life())


def test_a_runtimes_end_ends_the_work_for_it_and_nothing_else() -> None:
    async def life() -> None:
        runtime, task = process(), asyncio.current_task()
        asyncio.get_running_loop().call_soon(runtime.exited.set)
        with pytest.raises(EnvironmentUnavailable):
            await readiness.unless_exited(runtime, asyncio.sleep(3600))
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(life())


def test_a_cancelled_start_raises_that_and_not_the_exit_that_follows() -> None:
    async def life() -> None:
        runtime = process()

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                runtime.exited.set()

        starting = asyncio.ensure_future(readiness.unless_exited(runtime, work()))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()

    asyncio.run(life())
