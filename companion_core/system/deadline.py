"""Call something that may hang, and stop waiting for it in time.

A blocked call (a keychain prompt, a plugin's loop) cannot be cancelled from outside, so it
runs in a daemon thread that nobody joins: the program can still end. A thread whose call came
back waits for the next one, because waking a thread costs half of what making one does.
"""

from __future__ import annotations

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
from companion_core.system.lacks import lacks_told
from companion_core.system.running_clock import running_timeout

__all__ = [
    "CallThreads",
    "call_with_deadline",
    "call_with_deadline_async",
    "result_of",
    "start_call",
]

T = TypeVar("T")

_POLL_SECONDS: Final = 0.05
_IDLE_SECONDS: Final = 2.0
_AT_ONCE_SECONDS: Final = 0.0005

_Call: TypeAlias = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class CallThreads:
    """Daemon threads that make calls; one whose call came back takes the next.

    Args:
        idle_seconds: how long a thread without a call waits for one before it ends.
    """

    def __init__(self, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._idle: list[SimpleQueue[_Call]] = []  # one queue for each thread that waits

    @property
    def idle_count(self) -> int:
        """How many threads wait for a call."""
        return len(self._idle)

    def forget_threads(self) -> None:
        """Forget the threads that wait; a forked child has none of them."""
        self._idle.clear()

    def start(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Start `function(*args)` in a thread that does nothing else and return its future."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that gave up must not fail the thread
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = SimpleQueue()
            name = "companion-deadline"
            with lacks_told():  # else a plugin would be blamed for the lack of a thread
                threading.Thread(target=self._work, args=(calls,), name=name, daemon=True).start()
        calls.put((future, function, args))
        return future

    def _work(self, calls: SimpleQueue[_Call]) -> None:
        while True:
            try:
                self._carry_out(calls, *calls.get(timeout=self._idle_seconds))
            except Empty:
                try:
                    self._idle.remove(calls)
                except ValueError:
                    continue  # a caller has just taken this thread, and its call is on the way
                return

    def _carry_out(
        self,
        calls: SimpleQueue[_Call],
        future: Future[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        """Make one call; its function, arguments and result are forgotten with this frame."""
        try:
            # A new context: what one call sets in it, the next one does not see.
            result = contextvars.Context().run(function, *args)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, SystemExit included
            self._idle.append(calls)
            future.set_exception(error)
        else:
            self._idle.append(calls)
            future.set_result(result)
        finally:
            del future, function, args  # else the traceback of an error would keep them alive


_threads: Final = CallThreads()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_threads.forget_threads)


def start_call(function: Callable[..., T], *args: Any) -> Future[T]:
    """Start `function(*args)` in a thread that does nothing else and return its future."""
    return _threads.start(function, *args)


def call_with_deadline(
    function: Callable[..., T],
    *args: Any,
    seconds: float,
    cancelled: threading.Event | None = None,
) -> T:
    """Return `function(*args)`.

    Raises:
        TimeoutError: the call takes longer than `seconds`.
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
    """Return what a started call returns; blocks the event loop for half a millisecond at most.

    A quick call has come back within that time, and the loop would learn of it later.
    """
    with contextlib.suppress(TimeoutError):
        return call.result(timeout=_AT_ONCE_SECONDS)
    import asyncio  # noqa: PLC0415 - loaded on first use

    return await asyncio.wrap_future(call)


async def call_with_deadline_async(function: Callable[..., T], *args: Any, seconds: float) -> T:
    """Do what `call_with_deadline` does, without blocking the event loop."""
    async with running_timeout(seconds):
        import asyncio  # noqa: PLC0415 - loaded on first use

        return await asyncio.wrap_future(start_call(function, *args))
