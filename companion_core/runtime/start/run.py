"""One start and all that it has made, so that it can be taken down at whatever step it ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from companion_core.egress.backend_channel import BrokeredChannel
from companion_core.runtime.isolation import CeilingState, ControlGroup
from companion_core.runtime.process.handle import RuntimeProcess
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.process.reclaim import forget
from companion_core.runtime.start.backend_store import BackendStore
from companion_core.runtime.start.folder import remove_start_folder
from companion_core.runtime.start.folder_watch import FolderWatch
from companion_core.runtime.start.handed_model import HandedModel
from companion_core.runtime.start.model_facts import ModelFacts
from companion_core.runtime.start.placement import PlacementWatch
from companion_core.runtime.start.plan import StartSpec
from companion_core.runtime.start.readiness import Watched

__all__ = ["Run", "take_down"]


@dataclass(slots=True, kw_only=True)
class Run:
    """One start and all that it has made so far; None where it has not come to that.

    Attributes:
        on_foreign: called when another program answers where the runtime is to listen, or may do
            so; see `BackendPeer`.
        folder: its private folder.
        broker: the line into the runtime's own network namespace.
        group: the control group of a runtime whose ceilings the kernel enforces.
        ceilings: how they are enforced, as far as can be said before the runtime has started.
        facts: what its model says, and the context that fits.
        placement: where it places the model.
        output: what the runtime writes.
        model: its files as this start hands them on, until the runtime has them.
        process: the runtime, and its keeper or job.
        watched: the process and what it was planned to be like.
        read_back_at: when it was last found so, on the event loop's clock.
        store: what the backend keeps for its next start, if it keeps anything.
        socket_watch: tells when a runtime that announces nothing makes its socket.
        ended: its end was asked for or has been told; it is told once.
        foreign: it was ended because another program answered in the runtime's place.
    """

    spec: StartSpec
    on_foreign: Callable[[bool], None] = lambda _: None
    folder: Path | None = None
    broker: BrokeredChannel | None = None
    group: ControlGroup | None = None
    ceilings: CeilingState | None = None
    facts: ModelFacts | None = None
    placement: PlacementWatch | None = None
    output: RuntimeOutput | None = None
    model: HandedModel | None = None
    process: RuntimeProcess | None = None
    watched: Watched | None = None
    read_back_at: float = -math.inf
    store: BackendStore | None = None
    socket_watch: FolderWatch | None = None
    ended: bool = False
    foreign: bool = False


async def take_down(run: Run, *, terminate_after: float, kill_after: float) -> None:
    """End all that `run` has made: the tree, its keeper, its group, its log, its folder.

    Every step is taken, whatever another step raised. Of a tree that may be left the record alone
    stays, so that a later start finds and ends it.

    Raises:
        CompanionError: `stale_runtime`, the tree may be left; this may be called again.
        BaseException: the first of whatever else the steps raised.
    """
    steps: list[Callable[[], Awaitable[None] | None]] = [
        partial(_end_tree, run, terminate_after, kill_after)
    ]
    made = (run.output, run.broker, run.group, run.socket_watch, run.model)
    steps += [each.close for each in made if each is not None]
    if run.folder is not None:
        steps.append(partial(asyncio.to_thread, remove_start_folder, run.folder))
    errors: list[BaseException] = []
    for step in steps:
        try:
            taken = step()
            if taken is not None:
                await taken
        except BaseException as error:  # noqa: BLE001 - raised below, once every step is taken
            errors.append(error)
    if errors:
        raise errors[0]


async def _end_tree(run: Run, terminate_after: float, kill_after: float) -> None:
    if run.process is not None:
        await run.process.stop(terminate_after=terminate_after, kill_after=kill_after)
    forget(run.spec.record_path)
