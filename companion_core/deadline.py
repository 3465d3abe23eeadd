"""Call something that may hang, and stop waiting for it in time.

A blocked call (a keychain prompt, a plugin's loop) cannot be cancelled from outside, so it
runs in a daemon thread that nobody joins: the program can still end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

from companion_core.errors import CompanionError, Reason

__all__ = ["call_with_deadline", "call_with_deadline_async", "start_call"]

T = TypeVar("T")

_POLL_SECONDS: Final = 0.05


def start_call(function: Callable[..., T], *args: Any) -> Future[T]:
    """Start `function(*args)` in a thread of its own and return its future."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # a waiter that gave up must not fail the worker's end

    def work() -> None:
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, SystemExit included
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="companion-deadline", daemon=True).start()
    return future


def call_with_deadline(
    function: Callable[..., T],
    *args: Any,
    seconds: float,
    cancelled: threading.Event | None = None,
) -> T:
    """Return `function(*args)`.

    Raises:
        TimeoutError: it takes longer than `seconds`.
        CompanionError: `interrupted` when `cancelled` is set meanwhile.
    """
    future = start_call(function, *args)
    if cancelled is None:
        return future.result(timeout=seconds)
    deadline = time.monotonic() + seconds
    while not wait([future], timeout=_POLL_SECONDS).done:
        if cancelled.is_set():
            raise CompanionError(Reason.INTERRUPTED)
        if time.monotonic() > deadline:
            raise TimeoutError
    return future.result()


async def call_with_deadline_async(function: Callable[..., T], *args: Any, seconds: float) -> T:
    """As `call_with_deadline`, without blocking the event loop."""
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(start_call(function, *args))
