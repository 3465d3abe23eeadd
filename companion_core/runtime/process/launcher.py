"""Start a runtime under its keeper, and end both (I-08).

`runtime/standalone/keeper.py` says why nothing escapes from the tree. This is the companion's side
of the pair: it sends the start, takes the reports, and closes the line to end everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from companion_core.egress.interface import KILL, Egress, ProcessUnreadable
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import ResourceLimits
from companion_core.runtime.process.handle import RuntimeProcess
from companion_core.runtime.process.keeper_protocol import (
    Exited,
    Report,
    StartCommand,
    Started,
    StartFailed,
    parse_report,
)
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.process.proc_files import first_of_namespace, lives
from companion_core.runtime.process.tree import descendants, runtime_below
from companion_core.runtime.process.windows_job import JobProcess
from companion_core.system.interpreter import Interpreter, running_interpreter
from companion_core.system.lacks import lack_of, lacks_told

__all__ = ["KeeperProcess", "launch", "start_keeper"]

_KEEPER: Final = Path(__file__).parents[1] / "standalone" / "keeper.py"
_KEEPER_ENVIRONMENT: Final = {"LANG": "C.UTF-8"}
_REPORT_BYTES: Final = 4096
_POLL_SECONDS: Final = 0.002
_SIGNALLED: Final = 128


class KeeperProcess:
    """A runtime below its keeper; satisfies `RuntimeProcess`, made by `launch`."""

    def __init__(
        self,
        egress: Egress,
        keeper: subprocess.Popen[bytes],
        line: socket.socket,
        output: RuntimeOutput,
    ) -> None:
        self.identity: ProcessIdentity | None = None
        self.exited = asyncio.Event()
        self.exit_code: int | None = None
        self.for_memory = False
        self.output = output
        self._egress = egress
        self._keeper = keeper
        self._keeper_identity = egress.identify(keeper.pid)
        self._line = line
        self._programs = 0
        # The first process of the keeper's namespaces, below which the tree is; 0: there are none.
        self._first = 0
        # The first process of the runtime's process namespace, whoever made it: with it all ends.
        self._holder = 0
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.ensure_future(self._watch_reports())

    async def started(self, command: StartCommand) -> ProcessIdentity:
        """See `RuntimeProcess`; the keeper carries it out."""
        with contextlib.suppress(OSError):  # `_watch_reports` sees that the keeper is gone
            await asyncio.get_running_loop().sock_sendall(self._line, command.to_json())
        self._programs = command.programs
        pid: int | None = await asyncio.shield(self._started)
        if pid is not None and self._programs:
            pid = await self._find_below(pid)
        if pid is None:
            raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
        self.identity = self._egress.identify(pid)
        if self.identity is None:
            raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
        if not self._holder:  # bubblewrap's, if any
            with contextlib.suppress(ProcessUnreadable):
                self._holder = first_of_namespace(pid)
        return self.identity

    async def _find_below(self, started: int) -> int | None:
        while not self.exited.is_set():
            with contextlib.suppress(ProcessUnreadable):  # it may be there: look again below
                pid = await asyncio.to_thread(runtime_below, started, self._programs)
                if pid is not None:
                    return pid
            await asyncio.sleep(_POLL_SECONDS)  # execve(2) gives no event to wait for
        return None

    def tree(self) -> tuple[int, ...]:
        """See `RuntimeProcess`."""
        return descendants(self._first or self._keeper.pid)

    def observed(self) -> tuple[int, ...]:
        """See `RuntimeProcess`; the first process of its namespaces, or else the keeper."""
        tree = self.tree()
        return (*tree, self._first or self._keeper.pid) if tree else ()

    def identities(self) -> tuple[ProcessIdentity, ...]:
        """See `RuntimeProcess`."""
        return tuple(each for each in (self._keeper_identity, self.identity) if each is not None)

    def end(self) -> None:
        """See `RuntimeProcess`; the keeper kills it."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    async def stop(self, *, terminate_after: float, kill_after: float) -> None:
        """See `RuntimeProcess`; `_kill_all` ends a tree that its keeper did not end in time."""
        identity = self.identity
        if identity is not None and not self.exited.is_set() and terminate_after > 0:
            with contextlib.suppress(
                ProcessUnreadable
            ):  # then the keeper kills it, see `end` below
                self._egress.send_signal(identity, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(terminate_after):
                    await self.exited.wait()
        self.end()
        done, _ = await asyncio.wait({self._watch}, timeout=kill_after)
        if not done:
            self._kill_all()
            done, _ = await asyncio.wait({self._watch}, timeout=kill_after)
        if not done:  # `_until_cleared` goes on killing
            raise EnvironmentUnavailable(Reason.STALE_RUNTIME)

    def _kill_all(self) -> None:
        """Kill a tree whose keeper does not, because it was stopped or killed itself.

        With the keeper of a process namespace all of it ends. Another keeper is the only one that
        finds what has left the tree, so it is let go on if it was stopped.
        """
        known = [self.identity]
        with contextlib.suppress(ProcessUnreadable):  # the caller waits for the end and looks again
            known = [*(self._egress.identify(pid) for pid in self.tree()), *known]
        signals = [(identity, KILL) for identity in known]
        if sys.platform != "win32":  # a job is in the keeper's place there
            signals.append((self._keeper_identity, KILL if self._holder else signal.SIGCONT))
        for identity, number in signals:
            if identity is not None:
                with contextlib.suppress(ProcessUnreadable):
                    self._egress.send_signal(identity, number)

    def _has_tree(self) -> bool:
        """Tell whether something of the tree is left or may be.

        A process namespace has ended when its first process has. Where there is none, Landlock's
        filter lets nobody leave the session; without a tier too, one that has left is not seen.
        """
        try:
            return bool(self.tree()) or (self._holder != 0 and lives(self._holder))
        except ProcessUnreadable:
            return True

    async def _watch_reports(self) -> None:
        loop = asyncio.get_running_loop()
        pending = b""
        try:
            while data := await self._receive(loop):
                *reports, pending = (pending + data).split(b"\n")
                for report in map(parse_report, reports):
                    self._take(report)
        finally:
            self.exited.set()
            if not self._started.done():
                self._started.set_exception(EnvironmentUnavailable(Reason.SPAWN_FAILED))
            self._started.exception()  # marks it as seen, also where nobody waits for it
            self._line.close()
            try:
                await self._until_cleared()
            finally:
                self.output.close()

    async def _until_cleared(self) -> None:
        # The keeper's end of the line closes just before the keeper ends.
        while self._keeper.poll() is None:  # noqa: ASYNC110 - its end gives no event to wait for
            await asyncio.sleep(_POLL_SECONDS)
        while self._keeper.returncode != 0 and self._has_tree():
            self._kill_all()  # a keeper that was killed left its tree behind
            await asyncio.sleep(_POLL_SECONDS)

    async def _receive(self, loop: asyncio.AbstractEventLoop) -> bytes:
        try:
            return await loop.sock_recv(self._line, _REPORT_BYTES)
        except OSError:
            return b""

    def _take(self, report: Report | None) -> None:
        match report:
            case Started(pid, first):
                self._first = self._holder = first
                self._started.set_result(pid)
            case StartFailed(number):
                detail = errno.errorcode.get(number, "")
                self._started.set_exception(EnvironmentUnavailable(Reason.SPAWN_FAILED, detail))
            case Exited(code, for_memory):
                self.for_memory = for_memory
                # The programs in between report a signal as shells do.
                signalled = self._programs > 0 and code > _SIGNALLED
                self.exit_code = _SIGNALLED - code if signalled else code
                self.exited.set()


def launch(
    egress: Egress,
    *,
    folder: Path,
    output: RuntimeOutput,
    descriptors: Sequence[int],
    limits: ResourceLimits,
    interpreter: Interpreter | None = None,
) -> RuntimeProcess:
    """Start a keeper that waits for its command, or make a job; needs a running event loop.

    Nothing is awaited between the start of the keeper and the return of the handle on it, so a
    caller that is cancelled always has the handle by which it ends the keeper.

    Args:
        egress: the doorway.
        folder: the working folder.
        output: takes the runtime's stdout and stderr.
        descriptors: what the runtime inherits, under the same numbers; nothing on Windows.
        limits: the ceilings of a job; elsewhere a control group has them.
        interpreter: the Python that runs the keeper; None for the one that runs this code.

    Raises:
        EnvironmentUnavailable: `spawn_failed`, `isolation_unavailable`, `interpreter_missing`.
    """
    if sys.platform == "win32":
        return JobProcess(egress, folder=folder, output=output, limits=limits)
    keeper, line = start_keeper(
        egress,
        folder=folder,
        stdout=output.writer,
        stderr=output.writer,
        descriptors=descriptors,
        interpreter=interpreter,
    )
    try:
        line.settimeout(0)
        output.start()
        return KeeperProcess(egress, keeper, line, output)
    except BaseException:  # nobody has the handle by which the keeper is ended
        line.close()
        keeper.kill()
        keeper.wait()
        raise


def start_keeper(
    egress: Egress,
    *,
    folder: Path,
    stdout: int,
    stderr: int | None,
    descriptors: Sequence[int],
    interpreter: Interpreter | None,
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Return a keeper that waits for its command, and the line to it, which ends it when closed.

    See `launch`; `stdout` and `stderr` are the keeper's and the runtime's, None discards.
    """
    program = (interpreter or running_interpreter()).program
    if not _KEEPER.is_file():  # a frozen application did not take it along as a file
        raise EnvironmentUnavailable(Reason.SPAWN_FAILED, f"{_KEEPER} is missing")
    with lacks_told(Reason.SPAWN_FAILED):
        line, far_end = socket.socketpair()
    try:
        keeper = egress.start_process(
            (program, "-I", "-S", str(_KEEPER), str(far_end.fileno())),
            env=_KEEPER_ENVIRONMENT,
            cwd=str(folder),
            stdout=stdout,
            stderr=stderr,
            pass_fds=(far_end.fileno(), *descriptors),
        )
    except OSError as error:
        line.close()
        raise lack_of(error, Reason.SPAWN_FAILED) from error
    except BaseException:
        line.close()
        raise
    finally:
        far_end.close()
    return keeper, line
