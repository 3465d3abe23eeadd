"""The model that is served: watched, stopped when another program writes to it, or replaced.

One task at a time starts or stops the runtime: the watch, or a swap, which has ended the watch
first. A model's leases are given up only when no runtime has its files open any more (I-01).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from companion_core.decisions.availability import evaluate_availability
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.serving.events import Event, EventKind, Tell
from companion_core.serving.model_source import HeldModel
from companion_core.serving.runtime_words import told_runtime
from companion_core.serving.serving import Serving
from companion_core.serving.step import OnStep, Step
from companion_core.system.tasks import finish, outlast, unless

__all__ = ["ServedModel"]

DRAIN_SECONDS: Final = 30.0


class ServedModel:
    """What is behind one gateway, from its first model to its last.

    Args:
        serving: the gateway and its runtime.
        held: the first model.
        on_step: hears what happens outside a swap.
        hurry: once it is set, a drain no longer waits for running answers.
        on_unwatched: called when nothing serves and nothing will be started again.
        tell: hears that the model was lost to another program.

    Attributes:
        gave_up: why nothing serves after a swap that failed; None as long as something does.
    """

    def __init__(
        self,
        serving: Serving,
        held: HeldModel,
        *,
        on_step: OnStep,
        hurry: asyncio.Event,
        on_unwatched: Callable[[], None],
        tell: Tell = lambda _event: None,
    ) -> None:
        self._serving = serving
        self._held = held
        self._on_step = on_step
        self._hurry = hurry
        self._on_unwatched = on_unwatched
        self._tell = tell
        self._watch: asyncio.Task[None] | None = None
        self._drained_by: float | None = None
        self.gave_up: Reason | None = None

    @property
    def model_id(self) -> str:
        """The id of the model that is started, served or drained."""
        return self._held.model.model_id

    @property
    def verified(self) -> bool:
        """Whether its proof holds: nobody has asked to write to it."""
        return self._held.is_proved

    @property
    def held(self) -> Literal["lease", "identity"] | None:
        """How its files are held against writers; None without a proof."""
        if not self._held.is_proved:
            return None
        return "lease" if all(file.held for file in self._held.model.files) else "identity"

    def availability(self, *, token_stored: bool) -> Verdict:
        """Say whether a request would be served now, and if not, why (I-09)."""
        return evaluate_availability(
            self._serving.availability_facts(verified=self.verified, token_stored=token_stored)
        )

    async def begin(self) -> None:
        """Start the runtime, and watch it from then on.

        Raises:
            CompanionError: nothing of the runtime is left.
        """
        await self._start(self._held, self._on_step)
        self._begin_watch()

    async def replace(self, new: HeldModel, on_step: OnStep) -> None:
        """Drain and stop what runs, and serve `new` on the same port with the same token.

        When `new` does not start, the model before is started again with the size that it had.
        When that does not start either, `on_unwatched` is called.

        Raises:
            CompanionError: why `new` does not serve; it is closed.
        """
        old, size = self._held, self._serving.size
        try:
            await self._make_way_for(new)
        except BaseException:
            new.close()
            raise
        try:
            on_step(
                Step("drain", f"{self.model_id}: running answers may end, nothing new is taken")
            )
            await self.drain()
            await self._stop()
            self._serving.begin_anew(self._serving.full_size)
            await self._start(new, on_step)
            old.close()
            self._begin_watch()
        except CompanionError:
            if not new.in_use:  # else it is closed once no runtime has it open
                new.close()
            on_step(Step("stopped", f"{new.model.model_id} is not served; back to the one before"))
            try:
                self._serving.begin_anew(size)
                await self._start(old, on_step)
                self._begin_watch()
            except CompanionError as error:
                self.gave_up = error.reason
            if self._watch is None:
                on_step(
                    Step("stopped", "the model before does not start either: the companion stops")
                )
            raise
        finally:
            if self._watch is None:
                self._on_unwatched()

    async def _make_way_for(self, new: HeldModel) -> None:
        if not new.is_proved:
            raise Refused(Reason.DIGEST_MISMATCH)
        await self._serving.require_room_for(new.model)
        await self.unwatch()

    async def drain(self) -> None:
        """Take no new request and wait for those that run: once per model, unless in a hurry."""
        now = asyncio.get_running_loop().time()
        if self._drained_by is None:
            self._drained_by = now + DRAIN_SECONDS
        left = max(self._drained_by - now, 0)
        await unless(self._serving.drain(left), self._hurry, self._held.wanted)

    async def unwatch(self) -> None:
        """End the watch; raises what had ended it before, if anything did."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await outlast(watch)
            if not watch.cancelled():
                watch.result()

    async def _start(self, held: HeldModel, on_step: OnStep) -> None:
        self._held, self._drained_by = held, None
        held.in_use = True
        started = False
        try:
            started = await unless(self._serving.start(held.model), held.wanted)
        finally:
            if not started:
                await self._stop()
        if not started:
            raise Refused(Reason.DIGEST_MISMATCH)
        if (runtime := self._serving.runtime) is not None:
            on_step(
                Step(
                    "runtime",
                    f"{runtime.name}, pid {runtime.pid}, {runtime.channel} socket,"
                    f" isolation: {runtime.isolation}",
                )
            )
            own = runtime.model_context_length
            text = told_runtime(runtime.placement, runtime.context_length, own)
            on_step(Step("runtime", f"computed {text}"))
        on_step(Step("available", "a health check was answered through the gateway"))

    async def _stop(self) -> None:
        await self._serving.stop()
        self._held.in_use = False
        if self._held.wanted.is_set():
            self._held.close()

    def _begin_watch(self) -> None:
        self._watch = asyncio.create_task(self._watch_over(self._held))
        self._watch.add_done_callback(self._on_watch_end)

    async def _watch_over(self, held: HeldModel) -> None:
        await unless(self._serving.watchdog.run(), held.wanted)
        if held.wanted.is_set():
            await finish(self._give_up())

    async def _give_up(self) -> None:
        """End the runtime that has the model open, before the writer gets in."""
        await self._stop()
        text = "another program opened the model for writing"
        self._on_step(Step("stopped", text))
        lost = Event(
            kind=EventKind.MODEL_LOST,
            text=text,
            reason=Reason.DIGEST_MISMATCH,
            model=self.model_id,
        )
        self._tell(lost)

    def _on_watch_end(self, watch: asyncio.Task[None]) -> None:
        """Stop rather than serve unwatched; `unwatch` raises what ended the watch."""
        if not watch.cancelled() and (watch.exception() or not self._held.wanted.is_set()):
            self._on_unwatched()
