"""One model for another while the companion runs: one swap at a time, which others can follow.

Until the new model is proved, the swap can be cancelled and changes nothing. From the drain on it
is carried to its end; only the companion's own stop ends it then.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from companion_core.control.server import Handler
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    PluginFault,
    Reason,
    UsageError,
)
from companion_core.serving.events import Event, EventKind, Tell
from companion_core.serving.model_source import ModelSource
from companion_core.serving.served_model import ServedModel
from companion_core.serving.status import SwapStatus
from companion_core.serving.step import OnStep, Step
from companion_core.system.tasks import outlast

__all__ = ["Swap", "Swaps"]

# A follower gets an answer so often, also when there is nothing new: a sign of life.
NEWS_SECONDS: Final = 0.25
# A follower may still ask how its swap ended after so many more.
REMEMBERED: Final = 8
MAX_CHARACTERS: Final = 256


class Swap:
    """One swap, which begins at once.

    Args:
        name: given by the caller that asked for it.
        model_id: of the new model.
        work: carries it out, and reports its steps here.

    Attributes:
        name: see above.
        cancellable: the model before serves on; nothing has changed yet.
        error: why the new model does not serve; None while that is open, and when it serves.
        ended: set when that is settled.
        fault: the unexpected exception that ended it, if one did.
    """

    def __init__(
        self, name: str, model_id: str, work: Callable[[Swap], Coroutine[Any, Any, None]]
    ) -> None:
        self.name = name
        self.cancellable = True
        self.error: CompanionError | None = None
        self.ended = asyncio.Event()
        self.fault: BaseException | None = None
        self._model_id = model_id
        self._steps: list[Step] = []
        self._progress: Step | None = None
        self._task = asyncio.create_task(work(self))
        self._task.add_done_callback(self._settle)

    def report(self, step: Step) -> None:
        """Take a step, from any thread; a step with a total is progress."""
        if step.total:
            self._progress = step
        else:
            self._progress = None
            self._steps.append(step)

    def cancel(self) -> bool:
        """Cancel it if nothing has changed yet; tell whether that is so."""
        if self.cancellable:
            self._task.cancel()
        return self.cancellable

    async def abandon(self) -> None:
        """Cancel it at whatever step it is, and return when it has ended."""
        self._task.cancel()
        await outlast(self._task)

    def _settle(self, task: asyncio.Task[None]) -> None:
        error = CompanionError(Reason.INTERRUPTED) if task.cancelled() else task.exception()
        if error is None or isinstance(error, CompanionError):
            self.error = error
        else:
            self.error, self.fault = CompanionError(Reason.INTERNAL_FAULT), error
        self.ended.set()

    def status(self) -> SwapStatus:
        """Say which model is to come, and what the latest step is."""
        latest = self._progress or next(reversed(self._steps), None)
        return SwapStatus(model=self._model_id, step=latest)

    async def news(self, seen: int) -> dict[str, Any]:
        """Return the steps after the first `seen`, soon, and how it ended if it has."""
        if len(self._steps) <= seen and not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NEWS_SECONDS):
                    await self.ended.wait()
        progress, error = self._progress, self.error
        return {
            "steps": [dataclasses.asdict(step) for step in self._steps[seen:]],
            "progress": None if progress is None else dataclasses.asdict(progress),
            "ended": self.ended.is_set(),
            "error": None
            if error is None
            else {
                "reason": error.reason.value,
                "detail": error.detail,
                "plugin": error.plugin if isinstance(error, PluginFault) else "",
            },
        }


class Swaps:
    """Carries out the swaps of one companion; refuses them before `open` and after `close`.

    Args:
        first: the id of the model that the companion starts with.
        on_step: hears each step too.
        tell: hears how each swap ended.

    Attributes:
        handlers: by operation, what the control socket answers with.
    """

    def __init__(self, first: str, on_step: OnStep, tell: Tell = lambda _event: None) -> None:
        self.handlers: Final[Mapping[str, Handler]] = {
            "swap": self._answer_swap,
            "swap_news": self._answer_news,
            "swap_cancel": self._answer_cancel,
        }
        self._first: str | None = first
        self._on_step = on_step
        self._tell = tell
        self._open: tuple[ModelSource, ServedModel] | None = None
        self._remembered: deque[Swap] = deque(maxlen=REMEMBERED)

    def open(self, source: ModelSource, served: ServedModel) -> None:
        """Allow swaps from now on."""
        self._open = source, served

    async def close(self) -> None:
        """End the swap that is under way; the caller stops what the swap has started.

        Raises what ended a swap unexpectedly.
        """
        self._open = self._first = None
        for swap in self._remembered:
            await swap.abandon()
        for swap in self._remembered:
            if swap.fault is not None:
                raise swap.fault

    def status(self) -> SwapStatus | None:
        """Say what the swap that is under way does; None without one."""
        swap = self._under_way()
        return None if swap is None else swap.status()

    def begin(self, name: str, model_id: str) -> Swap:
        """Begin to swap, and return at once.

        Args:
            name: by which the caller finds it again.
            model_id: of another model in the manifest.

        Raises:
            EnvironmentUnavailable: `already_running` for the model that is served,
                `swap_in_progress`, `not_ready` while the companion starts or stops.
        """
        if self._open is None:
            first = model_id == self._first
            raise EnvironmentUnavailable(Reason.ALREADY_RUNNING if first else Reason.NOT_READY)
        source, served = self._open
        if self._under_way() is not None:  # also of the model that is about to go
            raise EnvironmentUnavailable(Reason.SWAP_IN_PROGRESS)
        if model_id == served.model_id and served.verified:
            raise EnvironmentUnavailable(Reason.ALREADY_RUNNING)

        async def work(swap: Swap) -> None:
            def report(step: Step) -> None:
                swap.report(step)
                self._on_step(step)

            try:
                new = await source.obtain(model_id, report)
                swap.cancellable = False
                await served.replace(new, report)
            except CompanionError as error:
                failed, why = EventKind.SWAP_FAILED, error.reason
                self._tell(Event(kind=failed, text=error.advice, reason=why, model=model_id))
                raise
            except asyncio.CancelledError:
                failed, why = EventKind.SWAP_FAILED, Reason.INTERRUPTED
                self._tell(Event(kind=failed, text="cancelled", reason=why, model=model_id))
                raise
            self._tell(Event(kind=EventKind.MODEL_SWAPPED, model=model_id))

        swap = Swap(name, model_id, work)
        self._remembered.append(swap)
        return swap

    async def carry_out(self, model_id: str) -> None:
        """Swap, and return when the new model serves; see `begin`."""
        swap = self.begin(secrets.token_hex(8), model_id)
        await outlast(asyncio.ensure_future(swap.ended.wait()), on_cancel=swap.cancel)
        if swap.error is not None:
            raise swap.error

    def _under_way(self) -> Swap | None:
        latest = next(reversed(self._remembered), None)
        return None if latest is None or latest.ended.is_set() else latest

    # --- what the control socket answers --------------------------------------------------

    async def _answer_swap(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        name, model_id = request.get("swap"), request.get("model")
        for text in (name, model_id):
            if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARACTERS:
                raise UsageError(Reason.USAGE)
        # A caller that heard no answer asks again.
        if not any(swap.name == name for swap in self._remembered):
            self.begin(str(name), str(model_id))
        return {}

    async def _answer_news(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        seen = request.get("seen")
        if type(seen) is not int or seen < 0:
            raise UsageError(Reason.USAGE)
        return await self._find(request).news(seen)

    async def _answer_cancel(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"cancelled": self._find(request).cancel()}

    def _find(self, request: Mapping[str, Any]) -> Swap:
        for swap in reversed(self._remembered):
            if swap.name == request.get("swap"):
                return swap
        raise UsageError(Reason.USAGE)
