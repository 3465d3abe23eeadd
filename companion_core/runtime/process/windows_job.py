"""Start a runtime in a job of Windows, and end both (I-08): not run on that system yet.

There is no keeper there: the companion owns the one handle to the job, so the companion's end,
whatever causes it, ends every process in the job. The runtime is started suspended and may run
once it is in the job, so that nothing it starts can be outside.

A program that shares no console with us cannot be asked to end; by then the gateway has drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from companion_core.egress.interface import Egress
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import ResourceLimits
from companion_core.runtime.process.job_object import JobObject, load_libraries
from companion_core.runtime.process.keeper_protocol import StartCommand
from companion_core.runtime.process.output import RuntimeOutput

__all__ = ["VENV_LAUNCHER_NAME", "JobProcess"]

# The interpreter of a virtual environment is a launcher there, which sets this for the real one.
VENV_LAUNCHER_NAME: Final = "__PYVENV_LAUNCHER__"
_POLL_SECONDS: Final = 0.01
_FIRST_FAULT: Final = 0x80000000  # NTSTATUS: a warning or an error, not a code of the program's
_CODES: Final = 2**32


class JobProcess:
    """A runtime in its job; satisfies `RuntimeProcess`.

    Args:
        egress: the doorway.
        folder: the working folder.
        output: takes the runtime's stdout and stderr.
        limits: ceilings that the job holds (I-12).
        libraries: the system's, as `load_libraries` returns them.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        folder: Path,
        output: RuntimeOutput,
        limits: ResourceLimits,
        libraries: dict[str, Any] | None = None,
    ) -> None:
        self.identity: ProcessIdentity | None = None
        self.exited = asyncio.Event()
        self.exit_code: int | None = None
        self.for_memory = False  # a job refuses memory and does not tell; it ends no process for it
        self.output = output
        self._egress = egress
        self._folder = folder
        self._job = JobObject(load_libraries() if libraries is None else libraries, limits)
        self._process: subprocess.Popen[bytes] | None = None

    async def started(self, command: StartCommand) -> ProcessIdentity:
        """See `RuntimeProcess`."""
        try:
            process = self._egress.start_process(
                command.argv,
                env=command.env,
                cwd=str(self._folder),
                stdout=self.output.writer,
                stderr=self.output.writer,
                suspended=True,
            )
        except OSError as error:
            raise EnvironmentUnavailable(Reason.SPAWN_FAILED) from error
        self._process = process
        self.output.start()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop, process), daemon=True).start()
        try:
            self._job.take(process.pid)
        except EnvironmentUnavailable:
            process.kill()  # it has not run yet
            raise
        self.identity = self._egress.identify(process.pid)
        if self.identity is None:
            raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
        return self.identity

    def tree(self) -> tuple[int, ...]:
        """See `RuntimeProcess`."""
        return self._job.processes()

    def observed(self) -> tuple[int, ...]:
        """See `RuntimeProcess`; the job counts what has ended."""
        return self.tree()

    def identities(self) -> tuple[ProcessIdentity, ...]:
        """See `RuntimeProcess`."""
        return () if self.identity is None else (self.identity,)

    def end(self) -> None:
        """See `RuntimeProcess`."""
        self._job.terminate()

    async def stop(self, *, terminate_after: float, kill_after: float) -> None:  # noqa: ARG002 - nothing here can be asked to end
        """See `RuntimeProcess`; the runtime is not asked first."""
        self.end()
        try:
            async with asyncio.timeout(kill_after):
                while self.tree():  # noqa: ASYNC110 - a job that becomes empty gives no event here
                    await asyncio.sleep(_POLL_SECONDS)
                if self._process is not None:
                    await self.exited.wait()
        except TimeoutError:  # the system goes on ending the job
            raise EnvironmentUnavailable(Reason.STALE_RUNTIME) from None
        self._job.close()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):  # any remaining writer is outside the tree
                async with asyncio.timeout(kill_after):
                    await self.output.ended.wait()
        self.output.close()

    def _wait(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
        """Run in a thread: wait for the runtime's end, and hand it to the event loop."""
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(self._take_end, code)

    def _take_end(self, code: int) -> None:
        self.exit_code = code - _CODES if code >= _FIRST_FAULT else code
        self.exited.set()
        self.end()  # kills what the runtime left running
