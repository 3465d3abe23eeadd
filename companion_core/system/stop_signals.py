"""Signals that ask a program to end, and how they arrive in code that blocks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

__all__ = [
    "stop_signals",
    "stop_signals_interrupt",
    "stop_signals_restored",
    "stop_signals_wait",
]


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a program to end: Ctrl-C, SIGTERM, a closed terminal."""
    signals = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:  # not under nohup
        signals.append(hang_up)
    return signals


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[Callable[[], None]]:
    """Let every stop signal arrive as `KeyboardInterrupt`, in code that blocks.

    The caller calls the yielded function once the outcome is final. From then on stop signals are
    ignored, so that the exit code tells that outcome.
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
def stop_signals_restored() -> Iterator[None]:
    """Give stop signals, at the end, the handlers that they have now.

    It surrounds work of which only a part is `stop_signals_interrupt` with a final outcome.
    """
    before = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_signals_wait() -> Iterator[None]:
    """Hold stop signals back inside the context; they arrive when it ends.

    This covers the moment between the start of a program and the assignment of its handle, by
    which an interrupt can end it. A signal without a handler still ends this process.
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
