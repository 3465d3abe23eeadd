"""One runtime at a time: started, watched, and ended with all that it started (I-08, I-09).

Only this file moves the lifecycle's state. A start that ends early, by a refusal, a deadline or a
cancellation, is taken down in the same way each time.
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
from companion_core.runtime.start.listener import NOBODY, StartedBackend, StartListener
from companion_core.runtime.start.plan import StartSpec
from companion_core.runtime.start.readiness import read_back_patiently, unless_exited
from companion_core.runtime.start.run import Run, take_down
from companion_core.runtime.start.sequence import bring_up
from companion_core.system.lacks import lacks_told
from companion_core.system.secret import Secret
from companion_core.system.tasks import finish, outlast, run_in_worker

__all__ = ["Supervisor"]

TERMINATE_AFTER_SECONDS: Final = 5.0
KILL_AFTER_SECONDS: Final = 5.0
# Verdicts for which a runtime is not ended, by whether it is still starting.
_TOLERATED: Final = {
    False: frozenset({Reason.NOT_RUNNING}),
    True: frozenset({Reason.NOT_RUNNING, Reason.HEALTH_FAILED}),
}


def new_backend_key() -> Secret:
    """Return a new key: 256 bits of the system's randomness in base64url."""
    return Secret(secrets.token_urlsafe())


class Supervisor:
    """Owns the lifecycle's state and the current runtime; for one event loop.

    Args:
        egress: the doorway to the machine.
        clock: monotonic seconds.
        listener: hears the events of each start.
        make_key: makes the backend's key, a new one for each start.
        environment: gives the choice of accelerators and nothing else (I-06).

    Attributes:
        state: the lifecycle's state.
        ready_since: on `clock`, when the runtime became ready; None while it is not.
        last_ending: how the newest run ended; None before that.
        on_exit: called at once, without arguments, when the runtime ended by itself or was
            ended because it was not what was planned.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        clock: Callable[[], float],
        listener: StartListener = NOBODY,
        make_key: Callable[[], Secret] = new_backend_key,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.state = State.STOPPED
        self.ready_since: float | None = None
        self.last_ending: Ending | None = None
        self.on_exit: Callable[[], None] | None = None
        self._egress = egress
        self._clock = clock
        self._listener = listener
        self._make_key = make_key
        self._environment = environment
        self._run: Run | None = None
        self._starting: asyncio.Task[StartedBackend] | None = None
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None
        self._last_lines: tuple[str, ...] = ()

    @property
    def runtime_pid(self) -> int | None:
        """The runtime's process id; None while no runtime runs."""
        identity = None if self._process is None else self._process.identity
        return None if identity is None else identity.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest output of the current or the last runtime, without the backend's key."""
        if self._run is not None and self._run.output is not None:
            return tuple(self._run.output.last_lines)
        return self._last_lines

    @property
    def activity(self) -> asyncio.Event:
        """Set whenever the current runtime does something; never without a runtime."""
        output = self._run.output if self._run is not None else None
        return asyncio.Event() if output is None else output.activity

    def tree(self) -> tuple[int, ...]:
        """Return the process ids of the runtime and all below it. Blocking: reads files of each."""
        return () if self._process is None else self._process.tree()

    def observed(self) -> tuple[int, ...]:
        """Return the process ids whose use counts as the runtime's; blocking, as `tree`."""
        return () if self._process is None else self._process.observed()

    async def start(self, spec: StartSpec) -> StartedBackend:
        """Start the runtime and return when it listens, is what was planned, and is prepared.

        The state is `starting` from now on, until `report_health` changes it.

        Raises:
            CompanionError: nothing of the start is left, and the state is `stopped`. A second
                start is `invalid_transition`; `stop` during the start makes it `interrupted`.
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
            # Also where the task was cancelled before its first step, and so took nothing down.
            if self._starting.cancelled() or self._starting.exception() is not None:
                self.state = transition(self.state, Event.ABORTED).state
            self._starting = None

    def report_health(self, ok: bool) -> None:
        """Take the verdict on a runtime that is starting; a failure ends it."""
        move = transition(self.state, Event.HEALTH_OK if ok else Event.HEALTH_FAIL)
        if not move.ok:
            return  # a runtime that is ready is judged by the age of its last good answer
        self.state = move.state
        if ok:
            self.ready_since = self._clock()
        elif self._run is not None:
            self._end(self._run)

    def begin_drain(self) -> None:
        """Serve no new request; the runtime goes on until `stop`."""
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
            terminate_after: seconds that the runtime has to end by itself after SIGTERM.
            kill_after: seconds that the keeper has to kill the rest, before it is killed too.

        Raises:
            CompanionError: as `take_down`: `stale_runtime`, something of it may be left.
        """
        self._stopping, self.ready_since = True, None
        if self._starting is not None:
            self._starting.cancel()
            await outlast(self._starting)
        for event in (Event.ABORTED, Event.DRAIN, Event.STOPPED):
            self.state = transition(self.state, event).state
        if self._run is not None:
            await finish(self._take_down(self._run, terminate_after, kill_after))
        if self._watch is not None:  # not reached while something may be left: it watches on
            await outlast(self._watch)

    async def check_runtime(self, *, max_age: float = 0) -> Verdict:
        """Read the runtime's environment and sockets back; end it where they are not as planned.

        Args:
            max_age: seconds; a look as recent as that counts, and no new one is made.

        Returns:
            `not_running` while there is nothing to read; `on_exit` tells of the runtime's end.
            `health_failed` while it does not listen itself, which is tolerated during a start.
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
        elif verdict.reason not in _TOLERATED[self.state is State.STARTING] and not run.ended:
            self._end(run)
            self._tell_exit(Ending(reason=verdict.reason, exit_code=None, ready=True))
        return verdict

    async def settle(self) -> None:
        """Do, after a runtime's first good answer, what nobody has to wait for.

        It is read back once more, since a look from during the start counted for that answer; and
        what it keeps for its next start is written down, without which that start is slower.
        """
        run = self._run
        if not (await self.check_runtime()).ok or run is None or run.process is None:
            return
        if run.store is not None:
            # If it has exited, its files prove nothing.
            with contextlib.suppress(CompanionError, OSError):
                await unless_exited(run.process, run_in_worker(run.store.write_down))

    def terminate_unhealthy(self, reason: Reason) -> None:
        """End a runtime that no longer serves; `on_exit` is called as if it had ended by itself."""
        if self._run is not None and not self._run.ended:
            self._end(self._run)
            self._tell_exit(Ending(reason=reason, exit_code=None, ready=True))

    def _on_foreign(self, run: Run, perhaps: bool) -> None:
        """End a runtime in whose place another program answers.

        Where it is only that the tree does not listen (`perhaps`), a runtime that starts goes on:
        some load a model behind one listener, close it, and open another.
        """
        if run is not self._run or run.ended or (perhaps and self.state is State.STARTING):
            return
        if self._starting is not None and not self._starting.done():
            run.foreign = True  # then the start raises `backend_foreign`
            self._end(run)
        else:
            self.terminate_unhealthy(Reason.BACKEND_FOREIGN)

    @property
    def _process(self) -> RuntimeProcess | None:
        return None if self._run is None else self._run.process

    async def _start(self, spec: StartSpec) -> StartedBackend:
        if self._run is not None:  # the runtime before was told to end, and may not have ended yet
            await finish(self._take_down(self._run, 0, KILL_AFTER_SECONDS))
        run = self._run = Run(spec=spec)
        run.on_foreign = functools.partial(self._on_foreign, run)
        self._last_lines = ()
        try:
            backend = await self._bring_up(run)
        except BaseException as error:
            if isinstance(error, CompanionError):
                code = None if run.process is None else run.process.exit_code
                self.last_ending = Ending(reason=error.reason, exit_code=code, ready=False)
            await finish(self._take_down(run, 0, KILL_AFTER_SECONDS))
            raise
        if run.process is not None:
            self._watch = asyncio.ensure_future(self._watch_exit(run, run.process))
        return backend

    async def _bring_up(self, run: Run) -> StartedBackend:
        """As `bring_up`; raises `backend_foreign` where another program answered in its place."""
        try:
            with lacks_told():
                backend = await bring_up(
                    run,
                    egress=self._egress,
                    make_key=self._make_key,
                    environment=self._environment,
                    listener=self._listener,
                )
        except CompanionError as error:
            if run.foreign:
                raise error_for(Reason.BACKEND_FOREIGN) from error
            raise
        if run.foreign:
            raise error_for(Reason.BACKEND_FOREIGN)
        return backend

    async def _watch_exit(self, run: Run, process: RuntimeProcess) -> None:
        await process.exited.wait()
        if not run.ended:
            ready = self.state is not State.STARTING
            code = process.exit_code
            reason = Reason.RAM_OVER_LIMIT if process.for_memory else Reason.RUNTIME_EXITED
            self._tell_exit(Ending(reason=reason, exit_code=code, ready=ready))
        if self._run is run:
            with contextlib.suppress(CompanionError):  # the next `stop` or `start` raises it
                await finish(self._take_down(run, 0, KILL_AFTER_SECONDS))

    def _tell_exit(self, ending: Ending) -> None:
        self.last_ending = ending
        move = transition(self.state, Event.EXITED)
        self.state, self.ready_since = move.state, None
        if move.ok and self.on_exit is not None:
            self.on_exit()

    def _end(self, run: Run) -> None:
        """Have the tree killed without waiting; `_watch_exit` takes the run down afterwards."""
        run.ended = True
        if run.process is not None:
            run.process.end()

    async def _take_down(self, run: Run, terminate_after: float, kill_after: float) -> None:
        run.ended = True
        await take_down(run, terminate_after=terminate_after, kill_after=kill_after)
        if self._run is run:
            self._last_lines, self._run = self.last_lines, None
