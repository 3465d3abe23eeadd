"""The way up: from a proved program and a checked plan to a runtime that serves (I-01 to I-07).

The plugin plans; `bring_up` carries the plan out, in ten phases. Whatever a phase makes is put
into the `Run`, so that a start that ends in any phase can be taken down whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from companion_core.decisions.isolation import Tier
from companion_core.decisions.spawn_plan import base_environment
from companion_core.egress.backend_channel import BackendChannel, BrokeredChannel
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.providers import ModelFile, SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.inspect.backend_peer import BackendPeer
from companion_core.runtime.isolation import (
    CeilingState,
    broker_command,
    confine,
    open_broker,
    sandbox_policy,
    set_ceilings,
    with_fresh_bytecode,
)
from companion_core.runtime.process.binary import ProvedBinary, prove_binary
from companion_core.runtime.process.handle import RuntimeProcess
from companion_core.runtime.process.keeper_protocol import StartCommand
from companion_core.runtime.process.launcher import launch
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.process.reclaim import record
from companion_core.runtime.process.windows_job import VENV_LAUNCHER_NAME
from companion_core.runtime.start.backend_store import BackendStore
from companion_core.runtime.start.folder import choose_channel, new_start_folder
from companion_core.runtime.start.folder_watch import FolderWatch
from companion_core.runtime.start.handed_model import hand_on
from companion_core.runtime.start.listener import StartedBackend, StartListener
from companion_core.runtime.start.model_facts import look_at_model
from companion_core.runtime.start.placement import PlacementWatch, has_accelerator
from companion_core.runtime.start.plan import (
    ask_for_plan,
    check_spec,
    has_own_network,
    tier_for,
)
from companion_core.runtime.start.program_help import read_help
from companion_core.runtime.start.proofs import prove_all, prove_code, with_pinned_imports
from companion_core.runtime.start.readiness import Watched, unless_exited, until_serving
from companion_core.runtime.start.run import Run
from companion_core.system.secret import Secret
from companion_core.system.state_files import private_folder
from companion_core.system.tasks import run_in_worker

__all__ = ["bring_up"]

NOT_ENTERED: Final = CeilingState(hard=False, detail="the runtime did not enter its control group")
_NAMES_OF_LAUNCHERS: Final = frozenset({VENV_LAUNCHER_NAME} if sys.platform == "win32" else ())


async def bring_up(
    run: Run,
    *,
    egress: Egress,
    make_key: Callable[[], Secret],
    environment: Mapping[str, str],
    listener: StartListener,
) -> StartedBackend:
    """Start `run.spec` and return when it listens, is what was planned, and is prepared.

    The phases, which the code marks by their numbers:

    1. Require evidence for the model, its format, and options that the plugin knows (I-01).
    2. Prove the program (I-05).
    3. Make the folder of this start; choose the channel (I-07) and the tier.
    4. Open the model's files anew, for the runtime to read.
    5. Ask the plugin for its plan, and check it.
    6. Prove what the backend kept of the model; make the backend's key.
    7. Prove the plugin and the libraries, and that nobody wrote to the model or the program since;
       set the ceilings; confine the command.
    8. Launch it, write down its processes, and tell that it is launched.
    9. Read it back until it listens as planned (I-06, I-07), and prepare it.
    10. Require that the backend's own copies are the model.

    Raises:
        CompanionError: what has been made is in `run`, for `take_down`.
    """
    spec = run.spec
    # 1. Evidence and options.
    check_spec(spec)
    # 2. The program.
    binary = await asyncio.to_thread(
        prove_binary, spec.binary, spec.binary_sha256, interpreter=spec.interpreter
    )
    # 3. The folder, the channel and the tier.
    place = _make_place(run, environment)
    # 4. The model, as the runtime opens it.
    model = run.model = hand_on(spec.model, place.folder, place.tier)
    # 5. The plan.
    plan = await _plan(run, place, binary, model.files, egress)
    # 6. What the backend kept, and its key.
    store = _store_of(run, plan, place.tier)
    plan = replace(plan, prepare=await run_in_worker(store.prove))
    key = make_key() if plan.backend_key_env is not None else None
    # 7. Confinement.
    await run_in_worker(functools.partial(prove_all, spec, binary, plan))
    output = _prepare_surroundings(run, place, plan, key)
    with contextlib.closing(model), contextlib.ExitStack() as handed_on:
        models = model.reached_at(plan.model_link, place.tier)
        command = _confine(run, place, plan, binary, models=models, key=key, handed_on=handed_on)
        # 8. Launch and record.
        process = run.process = launch(
            egress,
            folder=place.folder,
            output=output,
            descriptors=command.descriptors,
            limits=spec.limits,
            interpreter=spec.interpreter,
        )
    ready_by = asyncio.get_running_loop().time() + plan.start_deadline_seconds
    try:
        async with asyncio.timeout_at(ready_by):
            identity = await process.started(command)
            record(spec.record_path, process.identities(), place.folder)
            watched = run.watched = _watched(run, place, process, command, egress)
            backend = _backend(
                run, place, plan, watched, key=key, pid=identity.pid, ready_by=ready_by
            )
            listener.launched(backend)
            # 9. Read back and prepare.
            model_file = spec.model.files[0]
            serving = until_serving(
                egress, watched, plan, key=key, model=model_file, listener=listener
            )
            run.read_back_at = await unless_exited(process, serving)
    except TimeoutError as error:
        raise EnvironmentUnavailable(Reason.START_TIMEOUT, str(spec.log_path)) from error
    except CompanionError as error:
        if error.reason is Reason.RUNTIME_EXITED:  # so does one that finds its files changed
            await run_in_worker(functools.partial(prove_code, spec))
        raise
    # 10. The backend's own copies.
    if not store.has_links_alone:
        await run_in_worker(store.require_model)
    return backend


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where one start happens.

    Attributes:
        folder: its private folder.
        channel: where the backend is to listen.
        tier: how it is confined, given that channel.
        base: the environment that the core itself sets.
    """

    folder: Path
    channel: UnixChannel | TcpChannel
    tier: Tier
    base: Mapping[str, str]

    @property
    def own_network(self) -> bool:
        """Whether the backend listens in a network namespace of its own."""
        return has_own_network(self.tier, self.channel)


def _make_place(run: Run, environment: Mapping[str, str]) -> _Place:
    spec = run.spec
    private_folder(spec.data_dir)
    folder = run.folder = new_start_folder(spec.run_dir)
    channel = choose_channel(spec.spawner.channels, folder)
    return _Place(
        folder=folder,
        channel=channel,
        tier=tier_for(spec, channel),
        base=base_environment(sys.platform, private_dir=str(folder), inherited=environment),
    )


async def _plan(
    run: Run,
    place: _Place,
    binary: ProvedBinary,
    files: tuple[ModelFile, ...],
    egress: Egress,
) -> SpawnPlan:
    spec = run.spec
    run.facts = await asyncio.to_thread(
        look_at_model,
        spec.model,
        spec.limits,
        places=spec.parallel,
        configured=spec.context_length,
    )
    help_text = await asyncio.to_thread(
        read_help,
        egress,
        binary,
        spec.binary_sha256,
        getattr(spec.spawner, "help_arguments", ()),
        tier=spec.tier,
        folder=place.folder,
        interpreter=spec.interpreter,
    )
    return await ask_for_plan(
        spec,
        place.folder,
        binary,
        place.channel,
        files=files,
        base_names=frozenset(place.base),
        help_text=help_text,
        found=run.facts,
    )


def _store_of(run: Run, plan: SpawnPlan, tier: Tier) -> BackendStore:
    spec = run.spec
    store = BackendStore(
        plan,
        spec.model,
        data_dir=spec.data_dir,
        record=spec.store_record,
        binary_sha256=spec.binary_sha256,
        mounted=tier is Tier.BUBBLEWRAP,
    )
    run.store = None if plan.store is None else store
    return store


def _prepare_surroundings(
    run: Run, place: _Place, plan: SpawnPlan, key: Secret | None
) -> RuntimeOutput:
    """Set the ceilings, open the log, and watch for a socket that nothing else announces."""
    run.group, run.ceilings = set_ceilings(run.spec.limits)
    placement = run.placement = PlacementWatch(
        plan.placement_texts, reaches_gpu=plan.gpu and has_accelerator()
    )
    output = run.output = RuntimeOutput(
        run.spec.log_path, ready_text=plan.ready_text, secret=key, heed=placement.heed
    )
    if plan.ready_text is None and isinstance(place.channel, UnixChannel):
        run.socket_watch = FolderWatch(place.folder, output.activity.set)
    return output


def _confine(
    run: Run,
    place: _Place,
    plan: SpawnPlan,
    binary: ProvedBinary,
    *,
    models: Sequence[tuple[str, int]],
    key: Secret | None,
    handed_on: contextlib.ExitStack,
) -> StartCommand:
    """Return the confined command, which needs what `handed_on` closes until it is launched."""
    descriptors = [descriptor for _, descriptor in models]
    interpreter = run.spec.interpreter
    policy = sandbox_policy(
        plan,
        binary,
        place.channel,
        write=(place.folder, run.spec.data_dir),
        models=models,
        interpreter=interpreter,
    )
    env = {**place.base, **plan.env}
    if plan.backend_key_env is not None and key is not None:
        env[plan.backend_key_env] = key.reveal()
    argv = plan.argv
    if binary.embedded:
        pinned = with_pinned_imports(argv, run.spec.code, place.folder)
        argv = with_fresh_bytecode(pinned, place.folder)
    if place.own_network and isinstance(place.channel, TcpChannel):
        run.broker, far_end = open_broker(place.channel)
        handed_on.callback(far_end.close)
        descriptors.append(far_end.fileno())
        argv = broker_command(interpreter, far_end.fileno(), place.channel, argv)
    confined = confine(
        place.tier,
        argv,
        env,
        policy,
        folder=place.folder,
        handed_on=handed_on,
        broker=interpreter if place.own_network else None,
    )
    return StartCommand(
        argv=confined.argv,
        env=confined.env,
        descriptors=(*descriptors, *confined.descriptors),
        policy=confined.policy,
        apart=confined.apart,
        group=None if run.group is None else run.group.path,
        programs=confined.programs,
    )


def _watched(
    run: Run, place: _Place, process: RuntimeProcess, command: StartCommand, egress: Egress
) -> Watched:
    spec = run.spec
    peer = BackendPeer(process, egress, run.on_foreign)
    return Watched(
        process=process,
        plugin=spec.plugin_name,
        channel=place.channel,
        reached_by=run.broker or peer.proved(place.channel),
        planned_names=frozenset(command.env),
        child_names=spec.spawner.child_env_names | _NAMES_OF_LAUNCHERS,
        allow_open_backend=spec.allow_open_backend or place.own_network,
    )


def _backend(
    run: Run,
    place: _Place,
    plan: SpawnPlan,
    watched: Watched,
    *,
    key: Secret | None,
    pid: int,
    ready_by: float,
) -> StartedBackend:
    entered = run.group is None or run.group.contains(pid)  # the keeper's child enters by itself
    return StartedBackend(
        channel=watched.reached_by,
        key=key,
        served_model=plan.served_model,
        routes=plan.routes,
        drop_fields=plan.drop_fields,
        dialect=plan.dialect,
        pid=pid,
        channel_name=_channel_name(watched.reached_by),
        tier=place.tier,
        ceilings=run.ceilings if run.ceilings is not None and entered else NOT_ENTERED,
        ready_by=ready_by,
        facts=run.facts,
        placement=run.placement,
    )


def _channel_name(channel: BackendChannel) -> Literal["unix", "tcp", "namespace"]:
    if isinstance(channel, BrokeredChannel):
        return "namespace"
    return "unix" if isinstance(channel, UnixChannel) else "tcp"
