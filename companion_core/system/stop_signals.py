"""Signals that ask a program to end: how they arrive in code that blocks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

__all__ = ["stop_signals", "stop_signals_interrupt", "stop_signals_wait"]


def stop_signals() -> list[signal.Signals]:
    """Return what asks a program to end: Ctrl-C, a terminate, a terminal that was closed."""
    signals = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:  # not under nohup
        signals.append(hang_up)
    return signals


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[Callable[[], None]]:
    """Let every stop signal arrive as `KeyboardInterrupt`, in code that blocks.

    What it yields is called when the outcome is final: for the moments that the program still
    has, stop signals are then ignored, so that its exit code says what is.
    """
    final = False

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in stop_signals()}

    def finish() -> None:
        nonlocal final
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        final = True

    try:
        yield finish
    finally:
        if not final:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def stop_signals_wait() -> Iterator[None]:
    """Hold stop signals back in here; what came arrives as this ends.

    For the moment between a program's start and the name by which an interrupt can end it. A
    signal that nobody handles ends this process as before.
    """
    came: list[int] = []
    before = {
        number: handler
        for number in stop_signals()
        if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            before[signal.Signals(late)](late, None)
