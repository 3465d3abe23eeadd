"""When a started runtime may be used: it listens where planned, as planned, and is prepared.

Readiness is its own announcement where it has one, else its socket; no request is sent
before the sockets of its tree have been read back (I-07).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from companion_core.backend_channel import BackendChannel
from companion_core.decisions.runtime_readback import (
    LoopbackChannel,
    check_environment,
    check_listeners,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.backend_client import send_prepare
from companion_core.runtime.launcher import KeptProcess
from companion_core.runtime.readback import environment_names, listeners
from companion_core.runtime.staging import ProvedFile

__all__ = ["Watched", "read_back", "unless_exited", "until_serving"]

T = TypeVar("T")

_READ_BACK_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A runtime's process and what it was planned to be like.

    Attributes:
        channel: where it listens, as it knows it.
        way: how the companion reaches that.
    """

    kept: KeptProcess
    plugin: str
    channel: UnixChannel | TcpChannel
    way: BackendChannel
    planned_names: frozenset[str]
    child_names: frozenset[str]
    allow_open_backend: bool

    def require(self, verdict: Verdict) -> None:
        """Go on with a proved channel alone; raise what anything else stands for."""
        if not isinstance(verdict, LoopbackChannel):
            raise error_for(verdict.reason, plugin=self.plugin)


def read_back(watched: Watched) -> Verdict:
    """Judge what really runs. Blocking, some milliseconds.

    Returns:
        a `LoopbackChannel`; else `not_running` where the runtime itself is gone, or the
        refusal of the rules in `decisions.runtime_readback`.
    """
    identity = watched.kept.identity
    names: dict[int, frozenset[str] | None] = {}
    tree = watched.kept.tree()
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            names[pid] = environment_names(pid)
    if identity is None or identity.pid not in names:
        return refuse(Reason.NOT_RUNNING)
    verdict = check_environment(
        names.pop(identity.pid),
        names.values(),
        planned=watched.planned_names,
        child_names=watched.child_names,
    )
    if not verdict.ok:
        return verdict
    return check_listeners(
        listeners(tree), watched.channel, allow_open_backend=watched.allow_open_backend
    )


async def until_serving(
    egress: Egress, watched: Watched, plan: SpawnPlan, *, key: str | None, model: ProvedFile
) -> None:
    """Return when the runtime listens as planned and every request of the plan was answered.

    Raises:
        PluginFault: `runtime_environment`, `runtime_listens_wide`.
        EnvironmentUnavailable: `spawn_failed` for a request that was answered otherwise.
    """
    await _until_listening(egress, watched, plan)
    if not plan.prepare:
        return
    for request in plan.prepare:
        await send_prepare(egress, watched.way, request, key=key, model=model)
    watched.require(await asyncio.to_thread(read_back, watched))


async def unless_exited(kept: KeptProcess, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; raise `runtime_exited` as soon as the runtime ends."""
    working = asyncio.ensure_future(work)
    exited = asyncio.ensure_future(kept.exited.wait())
    try:
        await asyncio.wait({working, exited}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, exited):
            task.cancel()
        await asyncio.wait({working, exited})
    if not kept.exited.is_set():
        return working.result()
    if not working.cancelled():
        working.exception()  # taken: it followed from the end
    raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)


async def _until_listening(egress: Egress, watched: Watched, plan: SpawnPlan) -> None:
    loop, kept = asyncio.get_running_loop(), watched.kept
    ready = kept.output.ready
    pause, next_look = _FIRST_PAUSE_SECONDS, loop.time()
    while True:
        announced = plan.ready_text is None or ready.is_set()
        accepts = announced and await _accepts(egress, watched.way)
        if accepts or loop.time() >= next_look:
            next_look = loop.time() + _READ_BACK_SECONDS
            verdict = await asyncio.to_thread(read_back, watched)
            if verdict.ok and accepts:
                return
            if verdict.reason is Reason.NOT_RUNNING:
                await kept.exited.wait()
            if verdict.reason is not Reason.HEALTH_FAILED:  # that one: not its own socket yet
                watched.require(verdict)
        if announced:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_BACK_SECONDS):
                    await ready.wait()


class _Greeting(asyncio.Protocol):
    """Connects and leaves: it only shows that somebody accepts."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _accepts(egress: Egress, channel: BackendChannel) -> bool:
    try:
        await egress.connect_backend(_Greeting, channel)
    except OSError:
        return False
    if isinstance(channel, UnixChannel):
        Path(channel.path).chmod(0o600)  # noqa: ASYNC240 - one inode in memory
    return True
