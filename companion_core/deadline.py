"""Call something that may hang, and stop waiting for it in time.

A blocked call (a keychain prompt, a plugin's loop) cannot be cancelled from outside, so it
runs in a daemon thread that nobody joins: the program can still end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["call_with_deadline", "call_with_deadline_async", "start_call"]

T = TypeVar("T")


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


def call_with_deadline(function: Callable[..., T], *args: Any, seconds: float) -> T:
    """Return `function(*args)`; raise `TimeoutError` when it takes longer than `seconds`."""
    return start_call(function, *args).result(timeout=seconds)


async def call_with_deadline_async(function: Callable[..., T], *args: Any, seconds: float) -> T:
    """As `call_with_deadline`, without blocking the event loop."""
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(start_call(function, *args))
