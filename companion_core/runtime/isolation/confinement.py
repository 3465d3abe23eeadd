"""Turn a checked plan's command into the one that is started in a tier."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from companion_core.decisions.isolation import Tier
from companion_core.egress.backend_channel import BrokeredChannel
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import TcpChannel
from companion_core.runtime.isolation import sandbox_exec
from companion_core.runtime.isolation.bubblewrap import find_bubblewrap, open_filter, wrap
from companion_core.runtime.isolation.call_filter import MACHINES
from companion_core.runtime.isolation.policy import SandboxPolicy
from companion_core.runtime.process.keeper_protocol import Apart, LockPolicy
from companion_core.runtime.standalone.locks import SCOPE_SINCE, landlock_version
from companion_core.system.interpreter import Interpreter

__all__ = ["Confined", "broker_command", "confine", "open_broker", "with_fresh_bytecode"]

# The tests and the table of docs/isolation.md see what a tier does without them, too.
OWN_NAMESPACES = True
_BROKER: Final = Path(__file__).parents[1] / "standalone" / "broker.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """A command, confined; the attributes are those of `StartCommand`.

    Attributes:
        env: the planned environment and what the tier itself adds to it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    descriptors: tuple[int, ...] = ()
    policy: LockPolicy | None = None
    apart: Apart | None = None
    programs: int = 0


def confine(
    tier: Tier,
    argv: Sequence[str],
    env: Mapping[str, str],
    policy: SandboxPolicy,
    *,
    folder: Path,
    handed_on: contextlib.ExitStack,
    broker: Interpreter | None = None,
) -> Confined:
    """Return the command that runs `argv`, confined.

    Args:
        tier: as `choose_tier` chose it.
        argv: the planned command, or the broker that starts it.
        env: the planned environment.
        policy: what it may reach.
        folder: the working folder.
        handed_on: closes what the command inherits besides, once it is launched.
        broker: runs the broker, the one program in `argv` that comes before the runtime's own;
            None without a broker.

    Raises:
        EnvironmentUnavailable: `isolation_unavailable`, the tier's program is no longer there.
    """
    command = tuple(argv)
    helpers = int(broker is not None)
    if broker is not None:
        policy = replace(policy, read=(*policy.read, *broker.folders, str(_BROKER)))
    if tier is Tier.BUBBLEWRAP:
        bubblewrap = find_bubblewrap()
        if bubblewrap is None:
            raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
        calls = open_filter(policy)
        if calls is not None:
            handed_on.callback(os.close, calls)
        wrapped = wrap(bubblewrap, command, policy, folder=str(folder), calls=calls)
        return Confined(
            argv=wrapped,
            env={**env, "PWD": str(folder)},  # bubblewrap sets it where it starts the command
            descriptors=() if calls is None else (calls,),
            programs=helpers + 1,
        )
    if tier is Tier.SANDBOX_EXEC:
        return Confined(argv=sandbox_exec.wrap(command, policy), env=env, programs=helpers)
    apart = Apart(network=tier is Tier.LANDLOCK and policy.port is None)
    return Confined(
        argv=command,
        env=env,
        policy=_locks(policy) if tier is Tier.LANDLOCK else None,
        apart=apart if sys.platform == "linux" and OWN_NAMESPACES else None,
        programs=helpers,
    )


def _locks(policy: SandboxPolicy) -> LockPolicy:
    if sys.platform == "win32" or os.uname().machine not in MACHINES:
        raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
    scoped = landlock_version() >= SCOPE_SINCE
    return policy.lock_policy(os.uname().machine, signals_scoped=scoped)


def open_broker(listener: TcpChannel) -> tuple[BrokeredChannel, socket.socket]:
    """Return the channel to a listener in another network namespace, and the broker's end of it."""
    if sys.platform == "win32":
        raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
    line, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return BrokeredChannel(line, listener), far_end


def broker_command(
    interpreter: Interpreter, line: int, listener: TcpChannel, argv: Sequence[str]
) -> tuple[str, ...]:
    """Return the command that starts `argv` and hands out connections to its listener."""
    return (interpreter.program, "-I", "-S", str(_BROKER), str(line), str(listener.port), *argv)


def with_fresh_bytecode(
    argv: Sequence[str], folder: Path, *, pinned: bool = False
) -> tuple[str, ...]:
    """Return an embedded plan's command that compiles what it imports, for this start alone.

    It also writes its output at once (`-u`): an isolated interpreter reads no PYTHONUNBUFFERED.

    The plugin's sources were hashed; a compiled file that lies beside them was not.

    Args:
        argv: the interpreter, `-I`, and what it runs.
        folder: of this start.
        pinned: it runs the program of pinned imports, which compiles all but the interpreter's own
            library. Compiling that too takes longer than llama.cpp takes to load a small model.
    """
    interpreter, isolated, *rest = argv
    if pinned:
        return (interpreter, isolated, "-u", "-B", *rest)
    cache = f"pycache_prefix={folder / 'bytecode'}"
    return (interpreter, isolated, "-u", "-B", "-X", cache, *rest)
