"""A started runtime as the rest of the core sees it, whichever system keeps its tree (I-08)."""

from __future__ import annotations

import asyncio
import signal
from typing import Final, Protocol

from companion_core.egress.process_identity import ProcessIdentity
from companion_core.runtime.process.keeper_protocol import StartCommand
from companion_core.runtime.process.output import RuntimeOutput

__all__ = ["RuntimeProcess", "describe_exit"]

_FAULTS = 2**32  # added to a negative code, it gives the NTSTATUS of Windows again
# On POSIX, and as Windows has it.
_ILLEGAL_INSTRUCTION: Final = frozenset({-signal.SIGILL, 0xC000001D - _FAULTS})
_OTHER_PROCESSOR: Final = (
    "its program was built for another processor; build it for this one, or use the embedded one "
    '(runtime.binary = "embedded")'
)


class RuntimeProcess(Protocol):
    """A runtime, the keeper or job that its tree cannot leave, and its output.

    Attributes:
        identity: proves the runtime's process; None until it has started.
        exited: set as soon as the runtime has ended; its tree may live on for a moment.
        exit_code: of the runtime, negative for a signal or a fault; None while unknown.
        for_memory: the system ended it at its ceiling of memory (I-12).
        output: what it writes to stdout and stderr.
    """

    identity: ProcessIdentity | None
    exited: asyncio.Event
    exit_code: int | None
    for_memory: bool
    output: RuntimeOutput

    async def started(self, command: StartCommand) -> ProcessIdentity:
        """Carry the start out and return the runtime's identity once it is executed.

        Raises:
            EnvironmentUnavailable: `spawn_failed`, `runtime_exited`, `process_unreadable`.
        """
        ...

    def tree(self) -> tuple[int, ...]:
        """Return the runtime and all processes below it, without its keeper.

        Raises:
            ProcessUnreadable: one of them may be missing from the list.
        """
        ...

    def observed(self) -> tuple[int, ...]:
        """Return the tree, and with it the process that waits for those whose parent has ended.

        What such a process has used is found there alone. Empty when the tree is.

        Raises:
            ProcessUnreadable: one of the tree may be missing from the list.
        """
        ...

    def identities(self) -> tuple[ProcessIdentity, ...]:
        """Return what proves the runtime's process and its keeper's."""
        ...

    def end(self) -> None:
        """Have the whole tree killed. Returns at once; may be called again."""
        ...

    async def stop(self, *, terminate_after: float, kill_after: float) -> None:
        """Terminate, then kill; on return no process of the tree is left.

        Args:
            terminate_after: seconds that the runtime has to end by itself.
            kill_after: seconds that the keeper has to kill the tree, and then the core again.

        Raises:
            EnvironmentUnavailable: `stale_runtime`, something of the tree is left or may be. It
                is still being killed, and this may be called again.
        """
        ...


def describe_exit(code: int | None) -> str:
    """Say for a person how a runtime ended by itself; nothing where that is unknown.

    Args:
        code: as `RuntimeProcess.exit_code`.
    """
    if code is None:
        return ""
    if code >= 0:
        return f"exit code {code}"
    try:
        ended = f"ended by {signal.Signals(-code).name}"
    except ValueError:
        ended = f"ended by fault 0x{code + _FAULTS:08X}"
    if code in _ILLEGAL_INSTRUCTION:
        return f"{ended}: {_OTHER_PROCESSOR}"
    return ended
