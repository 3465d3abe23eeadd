"""Run a command's coroutine in the foreground, and hand its stop signals to the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from companion_core.system.open_files import raise_open_file_limit
from companion_core.system.stop_signals import stop_signals

__all__ = [
    "harden_process",
    "run_event_loop",
    "run_interruptible",
]

T = TypeVar("T")


def harden_process() -> None:
    """Create only owner-only files from now on, and no core dump with a secret in it (I-18).

    It may also have as many files open as the system allows it (I-20).
    """
    os.umask(0o077)
    raise_open_file_limit()
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - does not exist on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - slow to import, and only Linux needs it

        # PR_SET_DUMPABLE 0: the person's other programs cannot read this process's memory.
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop if `companion-core[fast]` installed it, else on the standard loop."""
    import asyncio  # noqa: PLC0415 - the parent of a detached companion runs no loop

    try:
        import uvloop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def run_interruptible(
    work: Coroutine[Any, Any, T], *, on_interrupt: Callable[[int, int], None]
) -> T:
    """Return the result of `work`.

    Args:
        work: what to run; a stop signal does not cancel it, `on_interrupt` may.
        on_interrupt: called with a signal's number and with how many came so far.
    """
    import asyncio  # noqa: PLC0415 - see above

    loop = asyncio.get_running_loop()
    count = 0

    def interrupt(number: int) -> None:
        nonlocal count
        count += 1
        on_interrupt(number, count)

    for number in stop_signals():
        try:
            loop.add_signal_handler(number, interrupt, number)
        except NotImplementedError:  # the event loop of Windows
            signal.signal(number, lambda n, _frame: loop.call_soon_threadsafe(interrupt, n))
    return await work
