"""A started runtime as the rest sees it, whatever holds its tree (I-08)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Protocol

from companion_core.egress.process_identity import ProcessIdentity
from companion_core.runtime.process.output import RuntimeOutput

__all__ = ["RuntimeProcess", "describe_exit"]

_FAULTS = 2**32  # NTSTATUS of Windows, which a negative code was taken from


class RuntimeProcess(Protocol):
    """A runtime, what holds its tree, and its output.

    Attributes:
        identity: what proves the runtime's process, once it has started.
        exited: set at once when the runtime has ended, its tree perhaps not yet.
        exit_code: of the runtime, negative for a signal or a fault; None while unknown.
        for_memory: the system ended it at its ceiling (I-12).
        output: what it writes.
    """

    identity: ProcessIdentity | None
    exited: asyncio.Event
    exit_code: int | None
    for_memory: bool
    output: RuntimeOutput

    async def started(self, start: Mapping[str, object], *, programs: int = 0) -> ProcessIdentity:
        """Carry the start out and return the runtime's identity once it is executed.

        Args:
            start: `argv`, `env`, `descriptors`, `policy` and `group`, as the keeper takes them.
            programs: how many programs the command leads through to the runtime.

        Raises:
            EnvironmentUnavailable: `spawn_failed`, `runtime_exited`, `process_unreadable`.
        """
        ...

    def tree(self) -> tuple[int, ...]:
        """Return the runtime and all processes below it, without what holds them.

        Raises:
            ProcessUnreadable: one of them may be left out.
        """
        ...

    def identities(self) -> tuple[ProcessIdentity, ...]:
        """Return what proves the runtime and what holds its tree."""
        ...

    def end(self) -> None:
        """Have the whole tree killed; returns at once, may be called again."""
        ...

    async def stop(self, *, terminate_after: float, kill_after: float) -> None:
        """Terminate, then kill; on return no process of the tree is left.

        Args:
            terminate_after: seconds that the runtime has to end by itself.
            kill_after: seconds that what holds the tree has to clear it, and the core after it.

        Raises:
            EnvironmentUnavailable: `stale_runtime`, something of it is left or may be; it is
                still being killed, and this may be called again.
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
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by fault 0x{code + _FAULTS:08X}"
