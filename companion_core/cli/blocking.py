"""Carry out a command's long work in a thread, so that a stop signal ends it at its next block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from companion_core.errors import CompanionError, Reason
from companion_core.system.deadline import start_call
from companion_core.system.stop_signals import stop_signals_interrupt

__all__ = ["run_cancellable"]

T = TypeVar("T")


def run_cancellable(work: Callable[[threading.Event], T]) -> T:
    """Return the result of `work`, which ends soon once its event is set. Blocks.

    The first stop signal cancels it, and what it was about to leave half done is undone; a second
    one stops waiting for that. Work that had ended by then counts.

    Raises:
        KeyboardInterrupt: it was cancelled.
    """
    cancelled = threading.Event()
    with stop_signals_interrupt():
        future = start_call(work, cancelled)
        try:
            return future.result()
        except KeyboardInterrupt:
            cancelled.set()
            try:
                return future.result()
            except CompanionError as error:
                if error.reason is Reason.INTERRUPTED:
                    raise KeyboardInterrupt from None
                raise
