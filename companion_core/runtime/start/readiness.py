"""When a started runtime may be used: it listens where planned, as planned, and is prepared.

A runtime listens once it says so, or once its socket accepts where it says nothing. No request
is sent before the sockets of its tree have been read back (I-07).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from companion_core.decisions.runtime_readback import (
    LoopbackChannel,
    check_environment,
    check_listeners,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.backend_channel import BackendChannel, BrokeredChannel
from companion_core.egress.interface import Egress, ProcessUnreadable
from companion_core.egress.unix_socket import make_private
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.models.store import ProvedFile
from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.inspect.readback import environment_names, listeners
from companion_core.runtime.process.handle import RuntimeProcess, describe_exit
from companion_core.runtime.start.listener import NOBODY, StartListener
from companion_core.runtime.start.polling import Polling
from companion_core.runtime.start.prepare import send_prepare
from companion_core.system.secret import Secret

__all__ = ["Watched", "read_back", "read_back_patiently", "unless_exited", "until_serving"]

T = TypeVar("T")

_READ_BACK_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.05
# It has no socket of its own yet; or it is just being executed and shows no environment.
_NOT_YET: Final = frozenset({Reason.HEALTH_FAILED, Reason.NOT_RUNNING})
# So many turns of the event loop make a connection and send the first question, which the runtime
# answers while the start goes on.
_TURNS_TO_ASK: Final = 2


@dataclass(slots=True, kw_only=True)
class Watched:
    """A runtime's process and what it was planned to be like.

    Attributes:
        channel: where it was told to listen.
        reached_by: how the companion connects to that.
        long_look: seconds; after a look that took longer, the next one is made in a thread.
        patience: for how many seconds to ask again while the system does not tell.
        takes_long: the last look was a long one.
    """

    process: RuntimeProcess
    plugin: str
    channel: UnixChannel | TcpChannel
    reached_by: BackendChannel
    planned_names: frozenset[str]
    child_names: frozenset[str]
    allow_open_backend: bool
    long_look: float = 0.005
    patience: float = _READ_BACK_SECONDS
    takes_long: bool = False

    def require(self, verdict: Verdict) -> None:
        """Return where the verdict proves a channel; else raise the error that it stands for."""
        if not isinstance(verdict, LoopbackChannel):
            raise error_for(verdict.reason, plugin=self.plugin)


def read_back(watched: Watched, *, wait: bool = True) -> Verdict:
    """Judge what really runs: in about half a millisecond, or half a second if it has to wait.

    Returns:
        A `LoopbackChannel`; else `not_running` where the runtime itself is gone,
        `process_unreadable` where the system does not tell, or the refusal of the rules in
        `decisions.runtime_readback`.

    Raises:
        BlockingIOError: a process is just starting or ending, and `wait` is false.
    """
    identity = watched.process.identity
    names: dict[int, frozenset[str] | None] = {}
    try:
        tree = watched.process.tree()
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                names[pid] = environment_names(pid, wait=wait)
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
            listeners(tree),
            watched.channel,
            allow_open_backend=watched.allow_open_backend,
            own_network=isinstance(watched.reached_by, BrokeredChannel),
        )
    except ProcessUnreadable as error:
        return refuse(error.reason)


def read_back_patiently(watched: Watched) -> Verdict:
    """As `read_back`, but ask again for a while where the system does not tell. Blocks."""
    deadline = time.monotonic() + watched.patience
    while True:
        verdict = _timed(watched)
        if verdict.reason is not Reason.PROCESS_UNREADABLE or time.monotonic() > deadline:
            return verdict
        time.sleep(_AGAIN_SECONDS)


async def until_serving(
    egress: Egress,
    watched: Watched,
    plan: SpawnPlan,
    *,
    key: Secret | None,
    model: ProvedFile,
    listener: StartListener,
) -> float:
    """Return when the runtime listens as planned and every request of the plan was answered.

    Args:
        egress: the doorway.
        watched: what is started.
        plan: for it.
        key: the backend's, if it has one.
        model: what a request of the plan may send.
        listener: hears `prepared` after a look at the runtime's sockets. What the requests of the
            plan opened is looked at while the runtime answers for its health (I-07).

    Returns:
        When it was last read back, on the event loop's clock.

    Raises:
        PluginFault: `runtime_environment`, `runtime_listens_wide`.
        EnvironmentUnavailable: `spawn_failed`, a request got another answer than planned.
    """
    looked_at = await _until_listening(egress, watched, plan, listener)
    for request in plan.prepare:
        await send_prepare(
            egress,
            watched.reached_by,
            request,
            key=key,
            model=model,
            listener=listener if request is plan.prepare[-1] else NOBODY,
        )
    listener.prepared()
    if plan.prepare:
        for _ in range(_TURNS_TO_ASK):
            await asyncio.sleep(0)
        looked_at = asyncio.get_running_loop().time()
        watched.require(await _read_back(watched))
    return looked_at


async def unless_exited(process: RuntimeProcess, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; raise `runtime_exited` as soon as the runtime ends.

    Where the kernel ended it at its ceiling of memory, `ram_over_limit` is raised instead.
    """
    caller = asyncio.current_task()
    exited = asyncio.ensure_future(process.exited.wait())
    try:
        async with asyncio.timeout(None) as until:  # the work stays in this task, without a switch
            exited.add_done_callback(lambda _: _end_now(until))
            result = await work
    except BaseException as error:
        # The runtime's end caused this error, unless the caller was cancelled: that comes first.
        if process.exited.is_set() and not (caller is not None and caller.cancelling()):
            raise _exited(process) from error
        raise
    finally:
        exited.cancel()
    if process.exited.is_set():
        raise _exited(process)
    return result


def _end_now(until: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # the work has just ended by itself
        until.reschedule(0)


def _exited(process: RuntimeProcess) -> EnvironmentUnavailable:
    if process.for_memory:
        return EnvironmentUnavailable(Reason.RAM_OVER_LIMIT)
    return EnvironmentUnavailable(Reason.RUNTIME_EXITED, describe_exit(process.exit_code))


async def _until_listening(
    egress: Egress, watched: Watched, plan: SpawnPlan, listener: StartListener
) -> float:
    """Return when it was last looked at, on the event loop's clock."""
    if plan.ready_text is not None:
        await _until_announced(watched)
    # The announcement is believed where only the health check comes next: that is repeated until
    # it succeeds, and the sockets are read back in any case.
    believed = plan.ready_text is not None and not plan.prepare
    now = asyncio.get_running_loop().time
    # A port may be another program's, which could keep a connection made before the look. On the
    # other channels only the person's own programs can listen.
    connects_early = not plan.prepare and not isinstance(watched.reached_by, TcpChannel)
    polling, looked_at = Polling(watched.process.output.activity), -math.inf
    while True:
        accepts = _is_in_place(watched.reached_by) and (
            believed or await _accepts(egress, watched.reached_by)
        )
        if accepts or now() - looked_at >= _READ_BACK_SECONDS:
            ahead = accepts and connects_early
            if ahead:
                listener.connectable()
                await asyncio.sleep(0)  # the connection is made during the look
            looked_at = now()
            if await _is_as_planned(watched) and accepts:
                return looked_at
            if ahead:
                listener.not_connectable()
        await polling.pause()


async def _until_announced(watched: Watched) -> None:
    ready = watched.process.output.ready
    while not ready.is_set():
        await _is_as_planned(watched)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_BACK_SECONDS):
                await ready.wait()


async def _is_as_planned(watched: Watched) -> bool:
    """Read back; tell whether the runtime listens, and raise for anything unplanned."""
    verdict = await _read_back(watched)
    if verdict.reason not in _NOT_YET:
        watched.require(verdict)
    return verdict.ok


async def _read_back(watched: Watched) -> Verdict:
    """Read back, in this thread where that was quick before: the start waits for the result.

    A runtime that is gone has ended: `unless_exited` raises as soon as that is told, so wait.
    """
    verdict = None
    if not watched.takes_long:
        with contextlib.suppress(BlockingIOError):
            verdict = _timed(watched, wait=False)
    if verdict is None or verdict.reason is Reason.PROCESS_UNREADABLE:
        verdict = await asyncio.to_thread(read_back_patiently, watched)
    if verdict.reason is Reason.NOT_RUNNING:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(watched.patience):
                await watched.process.exited.wait()
    return verdict


def _timed(watched: Watched, *, wait: bool = True) -> Verdict:
    began = time.monotonic()
    try:
        return read_back(watched, wait=wait)
    finally:
        watched.takes_long = time.monotonic() - began > watched.long_look


def _is_in_place(channel: BackendChannel) -> bool:
    """Tell whether there may be a listener, and make a Unix socket the person's alone."""
    if not isinstance(channel, UnixChannel):
        return True
    try:
        make_private(channel.path)  # fails for a link, which leads to another program's socket
    except OSError:
        return False
    return True


async def _accepts(egress: Egress, channel: BackendChannel) -> bool:
    try:
        await egress.reach_backend(channel)
    except OSError:
        return False
    return True
