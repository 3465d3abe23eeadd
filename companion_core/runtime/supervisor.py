"""One runtime at a time: started, watched, and nothing of it left behind (I-08, I-09).

The lifecycle's state is moved here and nowhere else. Whatever ends a start (a refusal, a
deadline, a cancellation) takes the same way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Final

from companion_core.decisions.lifecycle import Event, State, transition
from companion_core.decisions.restart import Ending
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.runtime.process.handle import RuntimeProcess
from companion_core.runtime.start.plan import StartSpec
from companion_core.runtime.start.readiness import (
    read_back_patiently,
    unless_exited,
)
from companion_core.runtime.start.sequence import (
    Run,
    StartedBackend,
    StartHooks,
    bring_up,
    take_down,
)
from companion_core.system.secret import Secret
from companion_core.system.tasks import (
    finish,
    outlast,
    run_in_worker,
)

__all__ = ["StartHooks", "StartSpec", "StartedBackend", "Supervisor"]

TERMINATE_AFTER_SECONDS: Final = 5.0
KILL_AFTER_SECONDS: Final = 5.0
# What a runtime may be found to be without being ended for it, by whether it is starting.
_PASSING: Final = {
    False: frozenset({Reason.NOT_RUNNING}),
    True: frozenset({Reason.NOT_RUNNING, Reason.HEALTH_FAILED}),
}


def new_backend_key() -> Secret:
    """Return a new key: 256 bits of the system's randomness in base64url."""
    return Secret(secrets.token_urlsafe())


class Supervisor:
    """Owns the lifecycle's state and the runtime that it is about; for one event loop.

    Args:
        egress: the doorway to the machine.
        clock: monotonic seconds.
        make_key: makes the backend's key, anew for each start.
        environment: from which the choice of accelerators is taken, and nothing else (I-06).

    Attributes:
        state: where the runtime is in its life.
        ready_since: on `clock`, when it became ready; None while it is not.
        last_ending: how the newest run ended; None while none has.
        hooks: called during each start.
        on_exit: called at once, without arguments, when the runtime ended by itself or was
            ended because it was not what was planned.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        clock: Callable[[], float],
        make_key: Callable[[], Secret] = new_backend_key,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.state = State.STOPPED
        self.ready_since: float | None = None
        self.last_ending: Ending | None = None
        self.hooks = StartHooks()
        self.on_exit: Callable[[], None] | None = None
        self._egress = egress
        self._clock = clock
        self._make_key = make_key
        self._environment = environment
        self._run: Run | None = None
        self._starting: asyncio.Task[StartedBackend] | None = None
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None
        self._last_lines: tuple[str, ...] = ()

    @property
    def runtime_pid(self) -> int | None:
        """The runtime's process id; None when none runs."""
        kept = self._kept
        return kept.identity.pid if kept is not None and kept.identity is not None else None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest output of the current or the last runtime, without the backend's key."""
        if self._run is not None and self._run.output is not None:
            return tuple(self._run.output.last_lines)
        return self._last_lines

    @property
    def activity(self) -> asyncio.Event:
        """Set whenever the current runtime does something; never while there is none."""
        output = self._run.output if self._run is not None else None
        return asyncio.Event() if output is None else output.activity

    def tree(self) -> tuple[int, ...]:
        """Return the process ids of the runtime and all below it. Reads files of each."""
        return self._kept.tree() if self._kept is not None else ()

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
            # A start that failed is over, one that was cancelled before its first step too.
            if self._starting.cancelled() or self._starting.exception() is not None:
                self.state = transition(self.state, Event.ABORTED).state
            self._starting = None

    def report_health(self, ok: bool) -> None:
        """Take the verdict on a runtime that is starting; a failure ends it."""
        move = transition(self.state, Event.HEALTH_OK if ok else Event.HEALTH_FAIL)
        if not move.ok:
            return  # once the runtime is ready, health is judged by its age
        self.state = move.state
        if ok:
            self.ready_since = self._clock()
        elif self._run is not None:
            self._end(self._run)

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

        Raises:
            CompanionError: `stale_runtime`, something of it may be left; as `take_down` has it.
        """
        self._stopping, self.ready_since = True, None
        if self._starting is not None:
            self._starting.cancel()
            await outlast(self._starting)
        for event in (Event.ABORTED, Event.DRAIN, Event.STOPPED):
            self.state = transition(self.state, event).state
        if self._run is not None:
            await finish(self._take_down(self._run, terminate_after, kill_after))
        if self._watch is not None:  # of one that may be left it goes on
            await outlast(self._watch)

    async def check_runtime(self, *, max_age: float = 0) -> Verdict:
        """Read the runtime's environment and sockets back; end it when they are not as planned.

        Args:
            max_age: seconds; when it was found as planned so recently, that counts.

        Returns:
            `not_running` while there is nothing to read; its end is told by `on_exit`.
            `health_failed` while its channel is not its own, which a start may go through.
        """
        run = self._run
        if run is None or run.watched is None:
            return refuse(Reason.NOT_RUNNING)
        now = asyncio.get_running_loop().time()
        if not run.ended and now - run.read_back_at < max_age:
            return OK
        verdict = await asyncio.to_thread(read_back_patiently, run.watched)
        if verdict.ok:
            run.read_back_at = now
        elif verdict.reason not in _PASSING[self.state is State.STARTING] and not run.ended:
            self._end(run)
            self._tell_exit(Ending(reason=verdict.reason, exit_code=None, ready=True))
        return verdict

    async def settle(self) -> None:
        """Do behind a runtime's first good answer what nobody has to wait for.

        It is looked at whole, since while it started a look from just before counted, and what it
        keeps for its next start is written down: without that the next start is slower, no more.
        """
        run = self._run
        if not (await self.check_runtime()).ok or run is None or run.kept is None:
            return
        if run.store is not None:
            # What a runtime leaves behind that ended meanwhile proves nothing.
            with contextlib.suppress(CompanionError, OSError):
                await unless_exited(run.kept, run_in_worker(run.store.write_down))

    def terminate_unhealthy(self, reason: Reason) -> None:
        """End a runtime that serves no more; `on_exit` is told, as when it had ended itself."""
        if self._run is not None and not self._run.ended:
            self._end(self._run)
            self._tell_exit(Ending(reason=reason, exit_code=None, ready=True))

    def _distrust(self, run: Run, perhaps: bool) -> None:
        """End a runtime in whose place another program answers; perhaps, while it starts, not yet.

        Some close the listener that they loaded behind and open it anew.
        """
        if run is not self._run or run.ended or (perhaps and self.state is State.STARTING):
            return
        if self._starting is not None and not self._starting.done():
            run.foreign = True  # its start says so
            self._end(run)
        else:
            self.terminate_unhealthy(Reason.BACKEND_FOREIGN)

    @property
    def _kept(self) -> RuntimeProcess | None:
        return self._run.kept if self._run is not None else None

    async def _start(self, spec: StartSpec) -> StartedBackend:
        if self._run is not None:  # the one before was told to end and has not ended yet
            await finish(self._take_down(self._run, 0, KILL_AFTER_SECONDS))
        run = self._run = Run(spec=spec)
        run.on_foreign = functools.partial(self._distrust, run)
        self._last_lines = ()
        try:
            backend = await self._bring_up(run)
        except BaseException as error:
            if isinstance(error, CompanionError):
                code = run.kept.exit_code if run.kept is not None else None
                self.last_ending = Ending(reason=error.reason, exit_code=code, ready=False)
            await finish(self._take_down(run, 0, KILL_AFTER_SECONDS))
            raise
        if run.kept is not None:
            self._watch = asyncio.ensure_future(self._watch_exit(run, run.kept))
        return backend

    async def _bring_up(self, run: Run) -> StartedBackend:
        """As `bring_up`; what follows from a foreign listener is told as `backend_foreign`."""
        try:
            backend = await bring_up(
                run,
                egress=self._egress,
                make_key=self._make_key,
                environment=self._environment,
                hooks=self.hooks,
            )
        except CompanionError as error:
            if run.foreign:
                raise error_for(Reason.BACKEND_FOREIGN) from error
            raise
        if run.foreign:
            raise error_for(Reason.BACKEND_FOREIGN)
        return backend

    async def _watch_exit(self, run: Run, kept: RuntimeProcess) -> None:
        await kept.exited.wait()
        if not run.ended:
            ready = self.state is not State.STARTING
            code = kept.exit_code
            reason = Reason.RAM_OVER_LIMIT if kept.for_memory else Reason.RUNTIME_EXITED
            self._tell_exit(Ending(reason=reason, exit_code=code, ready=ready))
        if self._run is run:
            with contextlib.suppress(CompanionError):  # who stops or starts next is told
                await finish(self._take_down(run, 0, KILL_AFTER_SECONDS))

    def _tell_exit(self, ending: Ending) -> None:
        self.last_ending = ending
        move = transition(self.state, Event.EXITED)
        self.state, self.ready_since = move.state, None
        if move.ok and self.on_exit is not None:
            self.on_exit()

    def _end(self, run: Run) -> None:
        """Have the tree killed without waiting; `_watch_exit` clears up behind it."""
        run.ended = True
        if run.kept is not None:
            run.kept.end()

    async def _take_down(self, run: Run, terminate_after: float, kill_after: float) -> None:
        run.ended = True
        await take_down(run, terminate_after=terminate_after, kill_after=kill_after)
        if self._run is run:
            self._last_lines, self._run = self.last_lines, None
