"""An interrupt in the moment in which a program starts: it is held back until it can end that."""

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
    """Also where the tests themselves run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_came_meanwhile_arrives_once_at_the_end(number: signal.Signals) -> None:
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
