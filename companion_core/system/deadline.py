"""Call something that may hang, and stop waiting for it in time.

A blocked call (a keychain prompt, a plugin's loop) cannot be cancelled from outside, so it
runs in a daemon thread that nobody joins: the program can still end. A thread whose call came
back takes the next one, for as long as there are some: to wake it costs half of making it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from companion_core.errors import CompanionError, Reason

__all__ = ["call_with_deadline", "call_with_deadline_async", "result_of", "start_call"]

T = TypeVar("T")

_POLL_SECONDS: Final = 0.05
_IDLE_SECONDS: Final = 2.0
_AT_ONCE_SECONDS: Final = 0.0005

_Call: TypeAlias = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
_idle: Final[list[SimpleQueue[_Call]]] = []  # where threads wait that have nothing to do
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_idle.clear)  # a child has none of them


def start_call(function: Callable[..., T], *args: Any) -> Future[T]:
    """Start `function(*args)` in a thread that does nothing else and return its future."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # a waiter that gave up must not fail the worker's end
    try:
        calls = _idle.pop()
    except IndexError:
        calls = SimpleQueue()
        name = "companion-deadline"
        threading.Thread(target=_work, args=(calls,), name=name, daemon=True).start()
    calls.put((future, function, args))
    return future


def _work(calls: SimpleQueue[_Call]) -> None:
    while True:
        try:
            _carry_out(calls, *calls.get(timeout=_IDLE_SECONDS))
        except Empty:
            try:
                _idle.remove(calls)
            except ValueError:
                continue  # somebody has just taken it, and its call is on the way
            return


def _carry_out(
    calls: SimpleQueue[_Call],
    future: Future[Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Make one call; what it was about is forgotten with this frame."""
    try:
        # What it sets for its own context is not there for the next one.
        result = contextvars.Context().run(function, *args)
    except BaseException as error:  # noqa: BLE001 - handed to the caller, SystemExit included
        _idle.append(calls)
        future.set_exception(error)
    else:
        _idle.append(calls)
        future.set_result(result)
    finally:
        del future, function, args  # else they would live as long as what was raised


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


async def result_of(call: Future[T]) -> T:
    """Return what a started call returns, without blocking the event loop.

    But for half a millisecond: a call that is quick has come back by then, and the loop would
    hear of it later than that.
    """
    with contextlib.suppress(TimeoutError):
        return call.result(timeout=_AT_ONCE_SECONDS)
    return await asyncio.wrap_future(call)


async def call_with_deadline_async(function: Callable[..., T], *args: Any, seconds: float) -> T:
    """As `call_with_deadline`, without blocking the event loop."""
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(start_call(function, *args))
