"""The way up: from a proved program and a checked plan to a runtime that serves (I-01 to I-07).

The plugin plans; this carries the plan out. `Run` holds all that was made on the way, so that
whoever ends a start, at whatever step, ends all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from companion_core.decisions.isolation import Tier
from companion_core.decisions.spawn_plan import base_environment
from companion_core.egress.backend_channel import (
    BackendChannel,
    BrokeredChannel,
)
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import Route, SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.inspect.backend_peer import BackendPeer
from companion_core.runtime.isolation import (
    CeilingState,
    ControlGroup,
    broker_command,
    confine,
    hold_ceilings,
    open_broker,
    sandbox_policy,
    with_fresh_bytecode,
)
from companion_core.runtime.process.binary import prove_binary
from companion_core.runtime.process.handle import RuntimeProcess
from companion_core.runtime.process.launcher import launch
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.process.reclaim import (
    forget,
    record,
)
from companion_core.runtime.process.windows_job import VENV_LAUNCHER_NAME
from companion_core.runtime.start.backend_store import BackendStore
from companion_core.runtime.start.folder import (
    choose_channel,
    new_start_folder,
    remove_start_folder,
)
from companion_core.runtime.start.folder_watch import FolderWatch
from companion_core.runtime.start.handed_model import (
    HandedModel,
    hand_on,
)
from companion_core.runtime.start.plan import (
    StartSpec,
    ask_for_plan,
    check_spec,
    has_own_network,
    tier_for,
)
from companion_core.runtime.start.program_help import read_help
from companion_core.runtime.start.readiness import (
    Watched,
    unless_exited,
    until_serving,
)
from companion_core.system.secret import Secret
from companion_core.system.state_files import private_folder
from companion_core.system.tasks import run_in_worker

__all__ = ["Run", "StartHooks", "StartedBackend", "bring_up", "take_down"]

NOT_ENTERED: Final = CeilingState(hard=False, detail="the runtime did not enter its control group")
_NAMES_OF_LAUNCHERS: Final = frozenset({VENV_LAUNCHER_NAME} if sys.platform == "win32" else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedBackend:
    """A runtime that is executed, and how it is reached.

    Attributes:
        ceilings: whether the system holds it below them, and if not, why (I-12).
        key: sent to it as Bearer, if there is one.
        ready_by: when its start is over, healthy or not, on the event loop's clock.
    """

    channel: BackendChannel
    key: Secret | None
    served_model: str
    routes: tuple[Route, ...]
    drop_fields: tuple[str, ...]
    pid: int
    channel_name: Literal["unix", "tcp", "namespace"]
    tier: Tier
    ceilings: CeilingState
    ready_by: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartHooks:
    """What is called on the way up, at once; the start goes on when it returns.

    Attributes:
        on_launch: the runtime's program is executed; nothing may be sent to it yet (I-07).
        on_connectable: it is looked at, or works on the last request of its plan; a connection
            may be made, and nothing be sent on it yet.
        on_let_go: it was not found as planned, or failed at that request and is sent it again; no
            connection may be left.
        on_prepared: it may be asked for its health.
    """

    on_launch: Callable[[StartedBackend], None] = lambda _: None
    on_connectable: Callable[[], None] = lambda: None
    on_let_go: Callable[[], None] = lambda: None
    on_prepared: Callable[[], None] = lambda: None


@dataclass(slots=True, kw_only=True)
class Run:
    """One start and all that it has made so far.

    Attributes:
        broker: the line into the runtime's own network namespace.
        group: what holds it below its ceilings, where that can be had.
        ceilings: what holds it below them, as far as can be said before it has started.
        watched: the runtime's process and what it was to be like.
        read_back_at: when it was last found so, on the event loop's clock.
        store: what the runtime keeps for its next start, if it keeps anything.
        model: its files as this start hands them on, until the runtime has them.
        socket_watch: tells when the runtime, which announces nothing, makes its socket.
        ended: its end has been asked for or told, so that the end is no news any more.
        on_foreign: called when another program answers where the runtime is to listen, or may do
            so; see `BackendPeer`.
        foreign: that was why the start was ended.
    """

    spec: StartSpec
    on_foreign: Callable[[bool], None] = lambda _: None
    folder: Path | None = None
    broker: BrokeredChannel | None = None
    group: ControlGroup | None = None
    ceilings: CeilingState | None = None
    output: RuntimeOutput | None = None
    model: HandedModel | None = None
    kept: RuntimeProcess | None = None
    watched: Watched | None = None
    read_back_at: float = -math.inf
    store: BackendStore | None = None
    socket_watch: FolderWatch | None = None
    ended: bool = False
    foreign: bool = False


async def bring_up(
    run: Run,
    *,
    egress: Egress,
    make_key: Callable[[], Secret],
    environment: Mapping[str, str],
    hooks: StartHooks,
) -> StartedBackend:
    """Start `run.spec` and return when it listens, is what was planned, and is prepared.

    Raises:
        CompanionError: what has been made is in `run`, for `take_down`.
    """
    spec = run.spec
    check_spec(spec)
    binary = await asyncio.to_thread(prove_binary, spec.binary, spec.binary_sha256)
    private_folder(spec.data_dir)
    run.folder = new_start_folder(spec.run_dir)
    channel = choose_channel(spec.spawner.channels, run.folder)
    base = base_environment(sys.platform, private_dir=str(run.folder), inherited=environment)
    tier = tier_for(spec, channel)
    help_text = await asyncio.to_thread(
        read_help,
        egress,
        binary,
        spec.binary_sha256,
        getattr(spec.spawner, "help_arguments", ()),
        tier=spec.tier,
        folder=run.folder,
    )
    run.model = hand_on(spec.model, run.folder, tier)
    plan = await ask_for_plan(
        spec,
        run.folder,
        binary,
        channel,
        files=run.model.files,
        base_names=frozenset(base),
        help_text=help_text,
    )
    store = _store_of(run, plan)
    plan = replace(plan, prepare=await run_in_worker(store.prove))
    env, key = base | dict(plan.env), None
    if plan.backend_key_env is not None:
        env[plan.backend_key_env] = (key := make_key()).reveal()

    await run_in_worker(spec.model.prove_again)
    # A linked model is opened by its link: then no descriptor is handed on.
    models = run.model.reached_by if plan.model_link is None else ()
    reach = sandbox_policy(plan, binary, channel, write=(run.folder, spec.data_dir), models=models)
    argv = with_fresh_bytecode(plan.argv, run.folder) if binary.embedded else plan.argv
    own_network = has_own_network(tier, channel)
    run.group, run.ceilings = hold_ceilings(spec.limits)
    run.output = RuntimeOutput(spec.log_path, ready_text=plan.ready_text, secret=key)
    if plan.ready_text is None and isinstance(channel, UnixChannel):
        run.socket_watch = FolderWatch(run.folder, run.output.activity.set)
    with contextlib.closing(run.model), contextlib.ExitStack() as handed_on:
        descriptors = [descriptor for _, descriptor in models]
        if own_network and isinstance(channel, TcpChannel):
            run.broker, far_end = open_broker(channel)
            handed_on.callback(far_end.close)
            descriptors.append(far_end.fileno())
            argv = broker_command(far_end.fileno(), channel, argv)
        confined = confine(tier, argv, env, reach, folder=run.folder, helpers=int(own_network))
        run.kept = launch(
            egress,
            folder=run.folder,
            output=run.output,
            descriptors=descriptors,
            limits=spec.limits,
        )
    start = {
        "argv": confined.argv,
        "env": dict(confined.env),
        "descriptors": descriptors,
        "policy": confined.policy,
        "group": str(run.group.path) if run.group is not None else None,
    }
    ready_by = asyncio.get_running_loop().time() + plan.start_deadline_seconds
    try:
        async with asyncio.timeout_at(ready_by):
            identity = await run.kept.started(start, programs=confined.programs)
            record(spec.record_path, run.kept.identities(), run.folder)
            run.watched = Watched(
                kept=run.kept,
                plugin=spec.plugin_name,
                channel=channel,
                reached_by=run.broker
                or BackendPeer(run.kept, egress, run.on_foreign).proved(channel),
                planned_names=frozenset(confined.env),
                child_names=spec.spawner.child_env_names | _NAMES_OF_LAUNCHERS,
                allow_open_backend=spec.allow_open_backend or own_network,
            )
            backend = StartedBackend(
                channel=run.watched.reached_by,
                key=key,
                served_model=plan.served_model,
                routes=plan.routes,
                drop_fields=plan.drop_fields,
                pid=identity.pid,
                channel_name=_channel_name(run.watched.reached_by),
                tier=tier,
                ceilings=run.ceilings if _is_held(run, identity.pid) else NOT_ENTERED,
                ready_by=ready_by,
            )
            hooks.on_launch(backend)
            serving = until_serving(
                egress,
                run.watched,
                plan,
                key=key,
                model=spec.model.files[0],
                on_connectable=hooks.on_connectable,
                on_let_go=hooks.on_let_go,
                on_prepared=hooks.on_prepared,
            )
            run.read_back_at = await unless_exited(run.kept, serving)
    except TimeoutError as error:
        raise EnvironmentUnavailable(Reason.START_TIMEOUT, str(spec.log_path)) from error
    if not store.holds_links_alone:
        await run_in_worker(store.require_model)
    return backend


async def take_down(run: Run, *, terminate_after: float, kill_after: float) -> None:
    """End all that `run` has made: the tree, its keeper, its group, its log, its folder.

    Every step is taken, whatever another one raised. Of a tree that may be left only the record
    stays, by which it is found and ended later.

    Raises:
        CompanionError: `stale_runtime`, the tree may be left; this may be called again.
        BaseException: what else a step raised; of several the first.
    """
    steps: list[Callable[[], Awaitable[None] | None]] = [
        partial(_end_tree, run, terminate_after, kill_after)
    ]
    made = (run.output, run.broker, run.group, run.socket_watch, run.model)
    steps += [each.close for each in made if each is not None]
    if run.folder is not None:
        steps.append(partial(remove_start_folder, run.folder))
    errors: list[BaseException] = []
    for step in steps:
        try:
            taken = step()
            if taken is not None:
                await taken
        except BaseException as error:  # noqa: BLE001 - raised below, behind the rest
            errors.append(error)
    if errors:
        raise errors[0]


async def _end_tree(run: Run, terminate_after: float, kill_after: float) -> None:
    if run.kept is not None:
        await run.kept.stop(terminate_after=terminate_after, kill_after=kill_after)
    forget(run.spec.record_path)


def _store_of(run: Run, plan: SpawnPlan) -> BackendStore:
    spec = run.spec
    store = BackendStore(
        plan,
        spec.model,
        data_dir=spec.data_dir,
        record=spec.store_record,
        binary_sha256=spec.binary_sha256,
    )
    run.store = None if plan.store is None else store
    return store


def _is_held(run: Run, pid: int) -> bool:
    """Tell whether the runtime is where its ceilings are; the keeper's child enters by itself."""
    return run.group is None or run.group.holds(pid)


def _channel_name(way: BackendChannel) -> Literal["unix", "tcp", "namespace"]:
    if isinstance(way, BrokeredChannel):
        return "namespace"
    return "unix" if isinstance(way, UnixChannel) else "tcp"
