from __future__ import annotations

import asyncio

import pytest

from companion_core.runtime.start import polling as attempts_module
from companion_core.runtime.start.polling import Polling, longest_pause, pause_after

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("silence", "pause"), [(0, 0.001), (0.02, 0.001), (0.1, 0.005), (1, 0.05), (2, 0.1), (60, 0.1)]
)
def test_a_pause_is_a_share_of_the_silence_within_its_bounds(silence, pause) -> None:
    assert longest_pause(silence) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("busy", "of", "pause"), [(0.05, 0, 0), (0.06, 0.2, 0), (0.06, 0.05, 0.05), (1, 2, 0.1)]
)
def test_a_runtime_that_writes_all_the_time_is_asked_a_tenth_of_the_time(busy, of, pause) -> None:
    assert pause_after(busy, of=of) == pytest.approx(pause)


def test_the_time_of_attempts_counts_and_that_of_pauses_does_not(monkeypatch) -> None:
    seen, now = [], 0.0

    def noted(busy: float, *, of: float) -> float:
        nonlocal now
        seen.append((busy, of))
        now += 10  # the pause took so long
        return 0

    monkeypatch.setattr(attempts_module, "pause_after", noted)

    async def life() -> None:
        nonlocal now
        activity = asyncio.Event()
        attempts = Polling(activity)
        attempts._now = lambda: now
        attempts._began = attempts._resumed = attempts._silent_since = 0.0
        for took in (1, 2):
            now += took
            activity.set()
            await attempts.pause()
        assert seen == [(1, 1), (3, 13)]

    asyncio.run(life())


def test_activity_wakes_the_next_attempt_and_silence_begins_anew(monkeypatch) -> None:
    monkeypatch.setattr(attempts_module, "longest_pause", lambda _silence: 3600)

    async def life() -> None:
        activity = asyncio.Event()
        attempts = Polling(activity)
        began = attempts._silent_since
        asyncio.get_running_loop().call_soon(activity.set)
        await attempts.pause()
        assert not activity.is_set()
        assert attempts._silent_since > began
        activity.set()  # during the attempt
        await attempts.pause()
        assert not activity.is_set()

    asyncio.run(life())


def test_a_silent_runtime_is_asked_all_the_same() -> None:
    async def life() -> None:
        attempts = Polling(asyncio.Event())
        began = attempts._silent_since
        await attempts.pause()
        assert attempts._silent_since == began

    asyncio.run(life())
