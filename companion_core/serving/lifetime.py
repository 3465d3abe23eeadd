"""How a companion ends: every step that was taken is undone, once, whatever asks for the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from companion_core.errors import CompanionError, Reason
from companion_core.system.tasks import outlast, unless

__all__ = ["Lifetime"]


class Lifetime:
    """The undo of each step, and the requests to stop; for one event loop.

    Attributes:
        undo: each step that is taken pushes its undo here.
        stop_requested: somebody asked for a stop.
        stop_now: somebody asked for a stop without waiting for running answers.
    """

    def __init__(self) -> None:
        self.undo = contextlib.AsyncExitStack()
        self.stop_requested = asyncio.Event()
        self.stop_now = asyncio.Event()
        self._closing: asyncio.Future[None] | None = None

    def request_stop(self, *, now: bool = False) -> None:
        """Ask for a stop; may be called again."""
        if now:
            self.stop_now.set()
        self.stop_requested.set()

    async def begin(self, start: Coroutine[Any, Any, None]) -> None:
        """Run the start; from then on a request to stop undoes it, whoever waits.

        Raises:
            CompanionError: `interrupted`, a stop was requested during the start.
            BaseException: what the start raised; every step is undone.
        """
        try:
            started = await unless(start, self.stop_requested)
        except BaseException:
            await self.close()
            raise
        if not started:
            await self.close()
            raise CompanionError(Reason.INTERRUPTED)
        self._closing = asyncio.ensure_future(self._close_when_asked())

    async def close(self) -> None:
        """Undo every step, to the end even when the caller is cancelled again."""
        self.request_stop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self.undo.aclose())
        await outlast(self._closing, on_cancel=lambda: self.request_stop(now=True))
        self._closing.result()

    async def _close_when_asked(self) -> None:
        """Stop for `companion down` also where the program that embeds this does not leave."""
        await self.stop_requested.wait()
        await self.undo.aclose()
