"""Wait for a task to its end, also while the waiting caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from companion_core.system.deadline import start_call

__all__ = ["cancel", "finish", "outlast", "run_in_worker", "unless"]

T = TypeVar("T")

# How long blocking work may take to end after it was cancelled.
CLEAN_UP_SECONDS: Final = 30.0


async def outlast(
    work: asyncio.Future[Any], *, on_cancel: Callable[[], object] = lambda: None
) -> None:
    """Wait until the work is over, however often the caller is cancelled meanwhile.

    A cancellation is raised at the end. An error of the work is not raised here.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
            on_cancel()
    if not work.cancelled():
        work.exception()  # retrieved, so asyncio does not report it as never retrieved
    if cancelled:
        raise asyncio.CancelledError


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do what `outlast` does, and raise an error of the work rather than a cancellation."""
    task = asyncio.ensure_future(work)
    try:
        await outlast(task)
    finally:
        task.result()


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def run_in_worker(
    function: Callable[[threading.Event], T],
    *,
    discard: Callable[[T], None] = lambda _result: None,
) -> T:
    """Run blocking work in a thread; a cancellation reaches the work and waits for its clean-up.

    Args:
        function: the work; its argument is an event that is set when it should end early.
        discard: disposes of a result that came after the cancellation.
    """
    cancelled = threading.Event()
    # No executor: the loop would wait for its threads, and a plugin's call may never end.
    work = asyncio.wrap_future(start_call(function, cancelled))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        clean_up = asyncio.ensure_future(asyncio.wait({work}, timeout=CLEAN_UP_SECONDS))
        with contextlib.suppress(asyncio.CancelledError):
            await outlast(clean_up)
        if work.done() and work.exception() is None:
            discard(work.result())
        raise


async def unless(work: Coroutine[Any, Any, Any], *events: asyncio.Event) -> bool:
    """Run the work to its end, or cancel it when one of the events is set first.

    Returns whether the work came to its end. It is over in either case, and its own error is
    raised.
    """
    task = asyncio.ensure_future(work)
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait({task, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        for each in (*waiting, task):
            each.cancel()
        for each in (*waiting, task):
            await outlast(each)
