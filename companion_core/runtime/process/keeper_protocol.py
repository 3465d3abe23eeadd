"""What the companion and a keeper say to each other: one start, then reports of it (I-08).

The keeper, which imports nothing of the package, reads and writes the same as JSON, one document
a line. This is the edge: beyond it nothing on this side knows how a message is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from companion_core.decisions.spawn_plan import parse_pid

__all__ = [
    "Apart",
    "Exited",
    "LockPolicy",
    "Report",
    "StartCommand",
    "StartFailed",
    "Started",
    "parse_report",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockPolicy:
    """What the keeper's child locks itself in with, before it executes the command.

    Attributes:
        read: paths that it may read and execute.
        write: paths that it may write too.
        devices: device files.
        port: of its loopback listener; None for a Unix socket.
        calls: the compiled filter of its system calls, in namespaces of its own.
        calls_here: the filter where it has none.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    port: int | None
    calls: bytes
    calls_here: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """The namespaces that the keeper starts the command in, where the system grants them.

    Attributes:
        network: an empty network is among them, besides processes, IPC and host name.
    """

    network: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCommand:
    """What to start, and in what surroundings.

    Attributes:
        argv: the whole command, with the programs that confine the runtime.
        env: its environment, which may hold the backend's key.
        descriptors: what it inherits, under the same numbers.
        policy: see `LockPolicy`; None: it does not lock itself in.
        apart: see `Apart`; None: a program of the command makes the namespaces, or nobody.
        group: the folder of the control group that it enters; None without one.
        programs: how many programs follow one another down to the runtime; 0: it is the command.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    descriptors: tuple[int, ...] = ()
    policy: LockPolicy | None = None
    apart: Apart | None = None
    group: Path | None = None
    programs: int = 0

    def to_json(self) -> bytes:
        """Return the line that the keeper reads."""
        policy = self.policy
        message = {
            "argv": self.argv,
            "env": dict(self.env),
            "descriptors": self.descriptors,
            "policy": None
            if policy is None
            else {
                "read": policy.read,
                "write": policy.write,
                "devices": policy.devices,
                "port": policy.port,
                "calls": policy.calls.hex(),
                "calls_here": policy.calls_here.hex(),
            },
            "apart": None if self.apart is None else {"network": self.apart.network},
            "group": None if self.group is None else str(self.group),
        }
        return json.dumps(message).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Started:
    """The command is executed.

    Attributes:
        pid: its process.
        first: the first process of the namespaces that the keeper made for it; 0: it made none.
    """

    pid: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Nothing was started; `number` is the system's error number, 0 where it gave none."""

    number: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The command has ended; `for_memory`: the kernel ended something at its ceiling."""

    code: int
    for_memory: bool


Report = Started | StartFailed | Exited


def parse_report(line: bytes) -> Report | None:
    """Return what the keeper reports; None for a document that is no report.

    Raises:
        ValueError: the line is not JSON.
    """
    match json.loads(line):
        case {"started": number, **more} if isinstance(pid := parse_pid(number), int):
            first = parse_pid(more.get("first"))
            return Started(pid, first if isinstance(first, int) else 0)
        case {"failed": int(number)}:
            return StartFailed(number)
        case {"exited": int(code), "for_memory": bool(for_memory)}:
            return Exited(code, for_memory)
    return None
