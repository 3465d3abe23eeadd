from __future__ import annotations

import asyncio

import pytest

from companion_core.runtime import attempts as attempts_module
from companion_core.runtime.attempts import Attempts, longest_pause

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("silence", "pause"), [(0, 0.001), (0.02, 0.001), (0.1, 0.005), (1, 0.05), (2, 0.1), (60, 0.1)]
)
def test_a_pause_is_a_share_of_the_silence_within_its_bounds(silence, pause) -> None:
    assert longest_pause(silence) == pytest.approx(pause)


def test_what_stirs_is_asked_at_once_and_silence_begins_anew(monkeypatch) -> None:
    monkeypatch.setattr(attempts_module, "longest_pause", lambda _silence: 3600)

    async def life() -> None:
        stirred = asyncio.Event()
        attempts = Attempts(stirred)
        began = attempts._silent_since
        asyncio.get_running_loop().call_soon(stirred.set)
        await attempts.pause()
        assert not stirred.is_set()
        assert attempts._silent_since > began
        stirred.set()  # during the attempt
        await attempts.pause()
        assert not stirred.is_set()

    asyncio.run(life())


def test_what_is_silent_is_asked_all_the_same() -> None:
    async def life() -> None:
        attempts = Attempts(asyncio.Event())
        began = attempts._silent_since
        await attempts.pause()
        assert attempts._silent_since == began

    asyncio.run(life())
