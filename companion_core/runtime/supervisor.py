"""Start one runtime at a time, watch it, and leave nothing of it behind (I-05 to I-09).

The plugin plans; this carries the plan out: the program is proved, the plan is checked, the
process is started under its keeper, and what really runs is read back before anything is
served. Whatever ends a start (a refusal, a deadline, a cancellation) takes the same way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from companion_core.decisions.lifecycle import Event, State, transition
from companion_core.decisions.runtime_readback import check_environment, check_listeners
from companion_core.decisions.spawn_plan import PlanFacts, base_environment, check_plan
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, error_for
from companion_core.plugin_host.calls import call_provider
from companion_core.providers import (
    CannotPlan,
    ResourceLimits,
    Route,
    Spawner,
    SpawnPlan,
    SpawnRequest,
    TcpChannel,
    UnixChannel,
)
from companion_core.runtime.backend_client import send_prepare
from companion_core.runtime.binary import prove_binary
from companion_core.runtime.launcher import KeptProcess, launch
from companion_core.runtime.output import RuntimeOutput
from companion_core.runtime.readback import environment_names, listeners
from companion_core.runtime.staging import VerifiedModel
from companion_core.runtime.start_folder import (
    check_copy,
    choose_channel,
    model_files,
    new_start_folder,
    place_model,
    remove_start_folder,
)
from companion_core.state_files import private_folder

__all__ = ["StartSpec", "StartedBackend", "Supervisor"]

T = TypeVar("T")

PLAN_SECONDS: Final = 5.0
TERMINATE_AFTER_SECONDS: Final = 5.0
KILL_AFTER_SECONDS: Final = 5.0
_READ_BACK_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """What to start.

    Attributes:
        plugin_modules: modules inside the plugin's own hashed files.
        binary: an absolute path, or "embedded".
        binary_sha256: as recorded at set-up; None where none was.
        data_dir: kept between starts.
        run_dir: where the folder of this start is made; short, for the socket's sake.
        parallel: requests that the gateway has in flight at most.
        allow_open_backend: the person accepted a backend without socket and key (I-07).
    """

    spawner: Spawner
    plugin_name: str
    plugin_modules: frozenset[str]
    binary: str
    binary_sha256: str | None
    model: VerifiedModel
    data_dir: Path
    run_dir: Path
    log_path: Path
    limits: ResourceLimits
    parallel: int
    threads: int
    context_length: int | None
    options: Mapping[str, str | int | float | bool]
    allow_open_backend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedBackend:
    """A runtime that listens where it should; `key` is sent to it as Bearer, if there is one."""

    channel: UnixChannel | TcpChannel
    key: str | None = field(repr=False)
    served_model: str
    routes: tuple[Route, ...]
    drop_fields: tuple[str, ...]
    pid: int
    channel_name: Literal["unix", "tcp"]


@dataclass(slots=True, kw_only=True)
class _Run:
    """All that one start has made so far, and what it was to be like."""

    spec: StartSpec
    folder: Path
    planned_names: frozenset[str] = frozenset()
    channel: UnixChannel | TcpChannel | None = None
    output: RuntimeOutput | None = None
    kept: KeptProcess | None = None
    ended: bool = False  # its end has been asked for or told: the next one is no news


class Supervisor:
    """Owns the lifecycle's state and the runtime that it is about.

    Use it from one event loop. Every method leaves the state where the table allows (I-09).

    Attributes:
        state: where the runtime is in its life.
        ready_since: on `clock`, when it became ready last; None while it is not.
        on_exit: called at once, without arguments, when the runtime ended by itself or was
            ended because it was not what was planned.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        clock: Callable[[], float],
        make_key: Callable[[], str] = secrets.token_urlsafe,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.state = State.STOPPED
        self.ready_since: float | None = None
        self.on_exit: Callable[[], None] | None = None
        self._egress = egress
        self._clock = clock
        self._make_key = make_key
        self._environment = environment
        self._run: _Run | None = None
        self._output: RuntimeOutput | None = None
        self._starting: asyncio.Task[StartedBackend] | None = None
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def runtime_pid(self) -> int | None:
        """The runtime's process id; None when none runs."""
        kept = self._run.kept if self._run is not None else None
        return kept.identity.pid if kept is not None and kept.identity is not None else None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest output of the current or the last runtime, without the backend's key."""
        return tuple(self._output.last_lines) if self._output is not None else ()

    def tree(self) -> tuple[int, ...]:
        """Return the process ids of the runtime and all below it. Takes a few milliseconds."""
        kept = self._run.kept if self._run is not None else None
        return kept.tree() if kept is not None else ()

    async def start(self, spec: StartSpec) -> StartedBackend:
        """Start the runtime and return when it listens, is what was planned, and is prepared.

        The state is `starting` from now on; `report_health` moves it.

        Raises:
            CompanionError: nothing is left, and the state is `stopped`. A second start is
                `invalid_transition`; `stop` during the start makes it `interrupted`.
        """
        move = transition(self.state, Event.START)
        if not move.ok:
            raise error_for(move.reason)
        self.state, self._stopping = move.state, False
        self._starting = asyncio.ensure_future(self._start(spec))
        try:
            return await self._starting
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._stopping and (caller is None or not caller.cancelling()):
                raise error_for(Reason.INTERRUPTED) from None
            raise
        finally:
            self._starting = None

    def report_health(self, ok: bool) -> None:
        """Take the verdict of a health check while starting; a failure ends the runtime."""
        move = transition(self.state, Event.HEALTH_OK if ok else Event.HEALTH_FAIL)
        if not move.ok:
            return  # health is judged by its age once the runtime is ready
        self.state = move.state
        if ok:
            self.ready_since = self._clock()
        else:
            self._end_now()

    def begin_drain(self) -> None:
        """Serve nothing new; the runtime goes on until `stop`."""
        self.state = transition(self.state, Event.DRAIN).state
        if self.state is State.DRAINING:
            self.ready_since = None

    async def stop(
        self,
        *,
        terminate_after: float = TERMINATE_AFTER_SECONDS,
        kill_after: float = KILL_AFTER_SECONDS,
    ) -> None:
        """End the runtime; on return its whole tree and its folder are gone.

        Args:
            terminate_after: seconds it has to end by itself after SIGTERM.
            kill_after: seconds that the keeper has to kill the rest before it is killed too.
        """
        self._stopping, self.ready_since = True, None
        if self._starting is not None:
            self._starting.cancel()
            await _finish(_settled(self._starting))
        for event in (Event.ABORTED, Event.DRAIN, Event.STOPPED):
            self.state = transition(self.state, event).state
        if self._run is not None:
            self._run.ended = True
            await _finish(self._destroy(self._run, terminate_after, kill_after))
        if self._watch is not None:
            await _finish(_settled(self._watch))

    async def check_runtime(self) -> Verdict:
        """Read the runtime's environment and sockets back; end it when they are not as planned."""
        run = self._run
        if run is None or run.kept is None or run.kept.exited.is_set():
            return refuse(Reason.NOT_RUNNING)
        verdict = await asyncio.to_thread(_read_back, run, run.kept)
        if not verdict.ok and verdict.reason is not Reason.NOT_RUNNING and not run.ended:
            run.kept.end()
            self._ended_by_itself(run)
        return verdict

    # --- the way up -----------------------------------------------------------------------

    async def _start(self, spec: StartSpec) -> StartedBackend:
        if self._run is not None:  # the one before was told to end and has not ended yet
            self._run.ended = True
            await _finish(self._destroy(self._run, 0, KILL_AFTER_SECONDS))
        try:
            return await self._carry_out(spec)
        except BaseException as error:
            self.state = transition(self.state, Event.ABORTED).state
            if self._run is not None:
                await _finish(self._destroy(self._run, 0, KILL_AFTER_SECONDS))
            if isinstance(error, CannotPlan):
                raise error_for(error.reason, plugin=spec.plugin_name) from error
            raise

    async def _carry_out(self, spec: StartSpec) -> StartedBackend:
        _check_spec(spec)
        binary = await asyncio.to_thread(prove_binary, spec.binary, spec.binary_sha256)
        private_folder(spec.data_dir)
        run = self._run = _Run(spec=spec, folder=new_start_folder(spec.run_dir))
        channel = run.channel = choose_channel(spec.spawner.channels, run.folder)
        files = model_files(spec.model, run.folder)
        base = base_environment(
            sys.platform, private_dir=str(run.folder), inherited=self._environment
        )
        request = SpawnRequest(
            binary=binary.path,
            embedded=binary.embedded,
            model_id=spec.model.model_id,
            model_path=files[0].path,
            chat_template=spec.model.chat_template,
            model_files=files,
            channel=channel,
            private_dir=str(run.folder),
            data_dir=str(spec.data_dir),
            limits=spec.limits,
            parallel=spec.parallel,
            threads=spec.threads,
            context_length=spec.context_length,
            options=dict(spec.options),
        )
        proposed = await call_provider(
            spec.plugin_name, spec.spawner.plan, request, seconds=PLAN_SECONDS
        )
        plan = check_plan(
            proposed,
            PlanFacts(
                binary=binary.path,
                embedded=binary.embedded,
                embedded_modules=spec.plugin_modules,
                env_names=spec.spawner.env_names,
                base_names=frozenset(base),
                model_path=files[0].path,
                channel=channel,
                data_dir=str(spec.data_dir),
                allow_open_backend=spec.allow_open_backend,
            ),
        )
        if isinstance(plan, Verdict):
            raise error_for(plan.reason, plugin=spec.plugin_name)
        if plan.model_link is not None:
            await asyncio.to_thread(place_model, spec.model.files[0], Path(plan.model_link))
        key = self._make_key() if plan.backend_key_env is not None else None
        env = base | dict(plan.env)
        if plan.backend_key_env is not None and key is not None:
            env[plan.backend_key_env] = key
        return await self._launch(run, plan, env, key)

    async def _launch(
        self, run: _Run, plan: SpawnPlan, env: dict[str, str], key: str | None
    ) -> StartedBackend:
        spec, channel = run.spec, run.channel
        if channel is None:
            raise error_for(Reason.INTERNAL_FAULT)
        run.planned_names = frozenset(env)
        run.output = self._output = RuntimeOutput(
            spec.log_path, ready_text=plan.ready_text, secret=key
        )
        # A linked model is opened by its link: then no descriptor is handed on.
        by_link = plan.model_link is not None
        descriptors = [] if by_link else [file.descriptor for file in spec.model.files]
        kept = run.kept = launch(
            self._egress, folder=run.folder, output=run.output, descriptors=descriptors
        )
        try:
            async with asyncio.timeout(plan.start_deadline_seconds):
                identity = await kept.started(
                    {"argv": plan.argv, "env": env, "descriptors": descriptors}
                )
                await _unless_exited(kept, self._until_serving(run, kept, plan, key))
        except TimeoutError as error:
            raise EnvironmentUnavailable(Reason.START_TIMEOUT, str(spec.log_path)) from error
        for path in plan.model_copies:
            await asyncio.to_thread(check_copy, Path(path), spec.model)
        self._watch = asyncio.ensure_future(self._watch_exit(run, kept))
        return StartedBackend(
            channel=channel,
            key=key,
            served_model=plan.served_model,
            routes=plan.routes,
            drop_fields=plan.drop_fields,
            pid=identity.pid,
            channel_name="unix" if isinstance(channel, UnixChannel) else "tcp",
        )

    async def _until_serving(
        self, run: _Run, kept: KeptProcess, plan: SpawnPlan, key: str | None
    ) -> None:
        """Return when the runtime listens as planned and has been prepared."""
        await self._until_listening(run, kept, plan)
        if not plan.prepare or run.channel is None:
            return
        for request in plan.prepare:
            model = run.spec.model.files[0]
            await send_prepare(self._egress, run.channel, request, key=key, model=model)
        verdict = await asyncio.to_thread(_read_back, run, kept)
        if not verdict.ok:
            raise error_for(verdict.reason, plugin=run.spec.plugin_name)

    async def _until_listening(self, run: _Run, kept: KeptProcess, plan: SpawnPlan) -> None:
        """Wait for the runtime's own word, or for its socket; read it back on the way.

        Whatever answers on the channel gets nothing before the tree is proved to hold it.
        """
        loop, output = asyncio.get_running_loop(), kept.output
        pause, next_look = _FIRST_PAUSE_SECONDS, loop.time()
        while True:
            announced = plan.ready_text is None or output.ready.is_set()
            accepts = announced and await self._accepts(run.channel)
            if accepts or loop.time() >= next_look:
                next_look = loop.time() + _READ_BACK_SECONDS
                verdict = await asyncio.to_thread(_read_back, run, kept)
                if verdict.ok and accepts:
                    return
                if verdict.reason is Reason.NOT_RUNNING:
                    await kept.exited.wait()
                if not verdict.ok and verdict.reason is not Reason.HEALTH_FAILED:
                    raise error_for(verdict.reason, plugin=run.spec.plugin_name)
            if announced:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(output.ready.wait(), _READ_BACK_SECONDS)

    async def _accepts(self, channel: UnixChannel | TcpChannel | None) -> bool:
        if channel is None:
            return False
        try:
            protocol = await self._egress.connect_backend(_Greeting, channel)
        except OSError:
            return False
        protocol.close()
        if isinstance(channel, UnixChannel):
            Path(channel.path).chmod(0o600)
        return True

    # --- the way down ---------------------------------------------------------------------

    async def _watch_exit(self, run: _Run, kept: KeptProcess) -> None:
        await kept.exited.wait()
        if not run.ended:
            self._ended_by_itself(run)
        if self._run is run:
            await _finish(self._destroy(run, 0, KILL_AFTER_SECONDS))

    def _ended_by_itself(self, run: _Run) -> None:
        run.ended = True
        move = transition(self.state, Event.EXITED)
        self.state, self.ready_since = move.state, None
        if move.ok and self.on_exit is not None:
            self.on_exit()

    def _end_now(self) -> None:
        """Have the tree killed without waiting; `_watch_exit` clears up behind it."""
        if self._run is not None and self._run.kept is not None:
            self._run.ended = True
            self._run.kept.end()

    async def _destroy(self, run: _Run, terminate_after: float, kill_after: float) -> None:
        if run.kept is not None:
            await run.kept.stop(terminate_after=terminate_after, kill_after=kill_after)
        elif run.output is not None:
            run.output.close()
        remove_start_folder(run.folder)
        if self._run is run:
            self._run = None


class _Greeting(asyncio.Protocol):
    """Connects and leaves: it only shows that somebody accepts."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        self._transport.close()


def _check_spec(spec: StartSpec) -> None:
    if type(spec.model) is not VerifiedModel:  # evidence, whatever the types said (I-01)
        raise Refused(Reason.NOT_VERIFIED)
    if spec.model.format not in spec.spawner.formats:
        raise error_for(Reason.MODEL_FORMAT_UNSUPPORTED, plugin=spec.plugin_name)
    unknown = sorted(set(spec.options) - spec.spawner.option_names)
    if unknown:
        raise error_for(Reason.UNKNOWN_OPTION, ", ".join(unknown))


def _read_back(run: _Run, kept: KeptProcess) -> Verdict:
    """Judge what really runs; `not_running` where the runtime itself is gone."""
    runtime = kept.identity.pid if kept.identity is not None else 0
    names: dict[int, frozenset[str] | None] = {}
    tree = kept.tree()
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            names[pid] = environment_names(pid)
    if runtime not in names or run.channel is None:
        return refuse(Reason.NOT_RUNNING)
    verdict = check_environment(
        names.pop(runtime),
        names.values(),
        planned=run.planned_names,
        child_names=run.spec.spawner.child_env_names,
    )
    if not verdict.ok:
        return verdict
    return check_listeners(
        listeners(tree), run.channel, allow_open_backend=run.spec.allow_open_backend
    )


async def _unless_exited(kept: KeptProcess, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; raise `runtime_exited` as soon as the runtime ends."""
    working = asyncio.ensure_future(work)
    exited = asyncio.ensure_future(kept.exited.wait())
    try:
        await asyncio.wait({working, exited}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        exited.cancel()
        working.cancel()
        await asyncio.wait({working, exited})
    if kept.exited.is_set():
        working.cancelled() or working.exception()  # its fault followed from the end
        raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
    return working.result()


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work` to its end even when cancelled meanwhile; then pass that on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _settled(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task})
