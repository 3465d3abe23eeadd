"""A stop signal that comes during a critical section arrives once, at its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from companion_core.system.stop_signals import stop_signals_wait

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="signals that this process can catch"),
]


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    """Let them arrive also where the tests run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_came_meanwhile_arrives_once_at_the_end(number: signal.Signals) -> None:
    came = []
    before = signal.signal(number, lambda number, _frame: came.append(number))
    try:
        with stop_signals_wait():
            signal.raise_signal(number)
            assert came == []
        assert came == [number]
        signal.raise_signal(number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)
