"""What a companion tells its product: each event once, in order, on the companion's own loop.

Whoever tells an event may do so in any thread. It is handed on in the thread of the event loop on
which the companion was entered, one after another; nothing that a listener does ends a companion.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Self

from companion_core.errors import Reason
from companion_core.serving.step import OnStep, Step
from companion_core.system.clock import wall_now

__all__ = ["EVENTS", "Announcer", "Event", "EventKind", "EventStream", "Tell"]

# Of one reader that does not read; beyond it the oldest are dropped, and counted.
BOUND: Final = 256


class EventKind(enum.StrEnum):
    """What happened; `EVENTS` says when each is told."""

    STEP = "step"
    RUNTIME_ENDED = "runtime_ended"
    RUNTIME_RESTARTING = "runtime_restarting"
    RUNTIME_RESTORED = "runtime_restored"
    RUNTIME_GAVE_UP = "runtime_gave_up"
    MODEL_LOST = "model_lost"
    MODEL_SWAPPED = "model_swapped"
    SWAP_FAILED = "swap_failed"
    OVERLOADED = "overloaded"
    OVERLOAD_ENDED = "overload_ended"
    KEYCHAIN_UNAVAILABLE = "keychain_unavailable"
    KEYCHAIN_RESTORED = "keychain_restored"
    STOPPING = "stopping"
    STOPPED = "stopped"


# When each kind is told, and what its fields hold besides `at` and `text`.
EVENTS: Final = {
    EventKind.STEP: "a step of the start, of a swap or of the stop; `step`",
    EventKind.RUNTIME_ENDED: "the runtime ended, or another start of it failed; `reason`",
    EventKind.RUNTIME_RESTARTING: "another start follows; `text` says when, or how small",
    EventKind.RUNTIME_RESTORED: "it serves again",
    EventKind.RUNTIME_GAVE_UP: "it is not started again and the companion stops; `reason`",
    EventKind.MODEL_LOST: "another program opened the model for writing: nothing serves until a "
    "swap; `reason`, `model`",
    EventKind.MODEL_SWAPPED: "another model serves; `model`",
    EventKind.SWAP_FAILED: "a swap ended without the new model; `reason`, `model`",
    EventKind.OVERLOADED: "requests are refused for want of room; `reason`",
    EventKind.OVERLOAD_ENDED: "no request was refused for some seconds",
    EventKind.KEYCHAIN_UNAVAILABLE: "the keychain no longer answers; the gateway serves on; "
    "`reason`",
    EventKind.KEYCHAIN_RESTORED: "it answers again",
    EventKind.STOPPING: "the companion begins to stop",
    EventKind.STOPPED: "nothing of it is left; the last event",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: what it is.
        text: for a person; never a secret, a digest or a prompt.
        reason: why, where something went wrong.
        model: the id of the model that it is about; "" for the one that is served.
        step: of an event of the kind `step`.
        missed: how many events this reader lost just before this one, because it did not read.
        at: when, by the machine's clock.
    """

    kind: EventKind
    text: str = ""
    reason: Reason = Reason.OK
    model: str = ""
    step: Step | None = None
    missed: int = 0
    at: datetime = field(default_factory=lambda: datetime.fromtimestamp(wall_now(), UTC))

    @property
    def is_progress(self) -> bool:
        """Whether it is the progress of a long step, which later progress replaces."""
        return self.step is not None and self.step.total > 0


Tell = Callable[[Event], None]


class EventStream:
    """The events from its making on, for one reader on the companion's loop.

        async for event in companion.events():
            ...

    It ends after `stopped`. A reader that is slower than the events finds the newest of them; the
    first that it finds says in `missed` how many it lost.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._news = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Take an event, from the loop's thread; it never waits."""
        if event.is_progress and self._waiting and self._waiting[-1].is_progress:
            self._waiting.pop()  # superseded, which is no loss
        if len(self._waiting) == self._bound:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._ended = event.kind is EventKind.STOPPED
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event, missed = self._waiting.popleft(), self._missed
        self._missed = 0
        return replace(event, missed=missed) if missed else event


class Announcer:
    """Hands each event to the product's callback and to every stream.

    Args:
        on_step: hears the steps; see `Companion.open`.

    Attributes:
        latest: the step that was told last.
    """

    def __init__(self, on_step: OnStep | None) -> None:
        self.latest: Step | None = None
        self._on_step = on_step
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._listeners: list[Tell] = []
        self._waiting: deque[Event] = deque()
        self._busy = False

    def bind(self) -> None:
        """Hand events on in the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def stream(self) -> EventStream:
        """Return a stream of what is told from now on."""
        stream = EventStream()
        self._streams.add(stream)
        return stream

    def listen(self, listener: Tell) -> None:
        """Call a part of this program with each event from now on; it must not raise."""
        self._listeners.append(listener)

    def step(self, step: Step) -> None:
        """Tell a step, from any thread."""
        self.latest = step
        self.tell(Event(kind=EventKind.STEP, text=step.text, step=step))

    def tell(self, event: Event) -> None:
        """Tell an event, from any thread; it never raises and never waits."""
        loop = self._loop
        if loop is None:  # nobody can have been told of anything yet
            return
        if _is_running_here(loop):
            self._hand_on(event)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._hand_on, event)

    def _hand_on(self, event: Event) -> None:
        """Hand it on after those before it, also when a listener's act tells the next."""
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                event = self._waiting.popleft()
                for stream in tuple(self._streams):
                    stream.put(event)
                for listener in self._listeners:
                    listener(event)
                if event.step is not None:
                    self._call_back(event.step)
        finally:
            self._busy = False

    def _call_back(self, step: Step) -> None:
        if self._on_step is None or self._loop is None:
            return
        try:
            self._on_step(step)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the product's own code
            # As asyncio reports a callback of its own; the product may set the handler.
            self._loop.call_exception_handler(
                {"message": "on_step of a companion raised; the companion goes on",
                 "exception": error}
            )  # fmt: skip


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
