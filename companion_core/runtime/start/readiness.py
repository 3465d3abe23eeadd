"""When a started runtime may be used: it listens where planned, as planned, and is prepared.

Readiness is its own announcement where it has one, else its socket; no request is sent
before the sockets of its tree have been read back (I-07).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from companion_core.decisions.runtime_readback import (
    LoopbackChannel,
    check_environment,
    check_listeners,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.backend_channel import BackendChannel
from companion_core.egress.interface import (
    Egress,
    ProcessUnreadable,
)
from companion_core.egress.unix_socket import make_private
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.models.store import ProvedFile
from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.inspect.readback import (
    environment_names,
    listeners,
)
from companion_core.runtime.process.handle import (
    RuntimeProcess,
    describe_exit,
)
from companion_core.runtime.start.polling import Polling
from companion_core.runtime.start.prepare import send_prepare
from companion_core.system.secret import Secret

__all__ = ["Watched", "read_back", "read_back_patiently", "unless_exited", "until_serving"]

T = TypeVar("T")

_READ_BACK_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.05
_LONG_SECONDS: Final = 0.005
# Not its own socket yet; just being executed, where the system shows no environment then.
_NOT_YET: Final = frozenset({Reason.HEALTH_FAILED, Reason.NOT_RUNNING})
# In so many turns of the event loop a connection is made and the question sent, which is being
# answered while the start goes on.
_TURNS_TO_ASK: Final = 2


@dataclass(slots=True, kw_only=True)
class Watched:
    """A runtime's process and what it was planned to be like.

    Attributes:
        channel: where it listens, as it knows it.
        reached_by: how the companion reaches that.
        takes_long: there was so much to look at that a thread has to, the next time.
    """

    kept: RuntimeProcess
    plugin: str
    channel: UnixChannel | TcpChannel
    reached_by: BackendChannel
    planned_names: frozenset[str]
    child_names: frozenset[str]
    allow_open_backend: bool
    takes_long: bool = False

    def require(self, verdict: Verdict) -> None:
        """Go on with a proved channel alone; raise what anything else stands for."""
        if not isinstance(verdict, LoopbackChannel):
            raise error_for(verdict.reason, plugin=self.plugin)


def read_back(watched: Watched, *, wait: bool = True) -> Verdict:
    """Judge what really runs. Takes about half a millisecond, and half a second if it has to wait.

    Returns:
        a `LoopbackChannel`; else `not_running` where the runtime itself is gone,
        `process_unreadable` where the system does not tell, or the refusal of the rules in
        `decisions.runtime_readback`.

    Raises:
        BlockingIOError: a process that comes or goes would have to be waited for, and `wait`
            is false.
    """
    identity = watched.kept.identity
    names: dict[int, frozenset[str] | None] = {}
    try:
        tree = watched.kept.tree()
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
        )
    except ProcessUnreadable as error:
        return refuse(error.reason)


def read_back_patiently(watched: Watched) -> Verdict:
    """As `read_back`; what the system does not tell is asked again, for a second. For a thread."""
    deadline = time.monotonic() + _READ_BACK_SECONDS
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
    on_connectable: Callable[[], None],
    on_let_go: Callable[[], None],
    on_prepared: Callable[[], None],
) -> float:
    """Return when the runtime listens as planned and every request of the plan was answered.

    Args:
        egress: the doorway.
        watched: what is started.
        plan: for it.
        key: the backend's, if it has one.
        model: what a request of the plan may send.
        on_connectable: called when all that is left is a look at it, or when it works on the
            last request: it may be connected to meanwhile.
        on_let_go: called when it was not found as planned, or failed at that request and is sent
            it again: no connection may be left.
        on_prepared: called when its health may be asked for: behind a look at its sockets. What
            was prepared is looked at while it answers (I-07).

    Returns:
        When it was last read back, on the event loop's clock.

    Raises:
        PluginFault: `runtime_environment`, `runtime_listens_wide`.
        EnvironmentUnavailable: `spawn_failed` for a request that was answered otherwise.
    """
    looked_at = await _until_listening(
        egress, watched, plan, on_connectable=on_connectable, on_let_go=on_let_go
    )
    for request in plan.prepare:
        last = request is plan.prepare[-1]
        hooks = {"on_sent": on_connectable, "on_retry": on_let_go} if last else {}
        await send_prepare(egress, watched.reached_by, request, key=key, model=model, **hooks)
    on_prepared()
    if plan.prepare:
        for _ in range(_TURNS_TO_ASK):
            await asyncio.sleep(0)
        looked_at = asyncio.get_running_loop().time()
        watched.require(await _read_back(watched))
    return looked_at


async def unless_exited(kept: RuntimeProcess, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; raise `runtime_exited` as soon as the runtime ends.

    One that the kernel ended at its ceiling is `ram_over_limit`.
    """
    caller = asyncio.current_task()
    exited = asyncio.ensure_future(kept.exited.wait())
    try:
        async with asyncio.timeout(None) as until:  # in this very task: it goes on at once
            exited.add_done_callback(lambda _: _end_now(until))
            result = await work
    except BaseException as error:
        # What failed followed from the end; only the caller's own cancellation comes before it.
        if kept.exited.is_set() and not (caller is not None and caller.cancelling()):
            raise _exited(kept) from error
        raise
    finally:
        exited.cancel()
    if kept.exited.is_set():
        raise _exited(kept)
    return result


def _end_now(until: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # it is over already
        until.reschedule(0)


def _exited(kept: RuntimeProcess) -> EnvironmentUnavailable:
    if kept.for_memory:
        return EnvironmentUnavailable(Reason.RAM_OVER_LIMIT)
    return EnvironmentUnavailable(Reason.RUNTIME_EXITED, describe_exit(kept.exit_code))


async def _until_listening(
    egress: Egress,
    watched: Watched,
    plan: SpawnPlan,
    *,
    on_connectable: Callable[[], None],
    on_let_go: Callable[[], None],
) -> float:
    """Return when it was last looked at, on the event loop's clock."""
    if plan.ready_text is not None:
        await _until_announced(watched)
    # One that announces itself is believed where nothing but its health is asked next: that is
    # asked again, and what it listens on is read back in any case.
    believed = plan.ready_text is not None and not plan.prepare
    now = asyncio.get_running_loop().time
    # A port may be another program's, which would keep a connection made before the look; at the
    # others only the person's own programs could listen.
    connects_early = not plan.prepare and not isinstance(watched.reached_by, TcpChannel)
    polling, looked_at = Polling(watched.kept.output.activity), -math.inf
    while True:
        accepts = _is_in_place(watched.reached_by) and (
            believed or await _accepts(egress, watched.reached_by)
        )
        if accepts or now() - looked_at >= _READ_BACK_SECONDS:
            ahead = accepts and connects_early
            if ahead:
                on_connectable()
                await asyncio.sleep(0)  # the connection is made while it is looked at
            looked_at = now()
            if await _is_as_planned(watched) and accepts:
                return looked_at
            if ahead:
                on_let_go()
        await polling.pause()


async def _until_announced(watched: Watched) -> None:
    ready = watched.kept.output.ready
    while not ready.is_set():
        await _is_as_planned(watched)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_BACK_SECONDS):
                await ready.wait()


async def _is_as_planned(watched: Watched) -> bool:
    """Read back and tell whether it holds its socket; end the start for anything unplanned."""
    verdict = await _read_back(watched)
    if verdict.reason not in _NOT_YET:
        watched.require(verdict)
    return verdict.ok


async def _read_back(watched: Watched) -> Verdict:
    """Read back without a thread where that was quick before: what starts waits for it.

    A runtime that is gone is told by its end (`unless_exited`), which comes at once.
    """
    verdict = None
    if not watched.takes_long:
        with contextlib.suppress(BlockingIOError):
            verdict = _timed(watched, wait=False)
    if verdict is None or verdict.reason is Reason.PROCESS_UNREADABLE:
        verdict = await asyncio.to_thread(read_back_patiently, watched)
    if verdict.reason is Reason.NOT_RUNNING:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_BACK_SECONDS):
                await watched.kept.exited.wait()
    return verdict


def _timed(watched: Watched, *, wait: bool = True) -> Verdict:
    began = time.monotonic()
    try:
        return read_back(watched, wait=wait)
    finally:
        watched.takes_long = time.monotonic() - began > _LONG_SECONDS


def _is_in_place(channel: BackendChannel) -> bool:
    """Tell whether there may be a listener, and make a Unix socket the person's alone."""
    if not isinstance(channel, UnixChannel):
        return True
    try:
        make_private(channel.path)  # a link leads to another program's
    except OSError:
        return False
    return True


async def _accepts(egress: Egress, channel: BackendChannel) -> bool:
    try:
        await egress.reach_backend(channel)
    except OSError:
        return False
    return True
