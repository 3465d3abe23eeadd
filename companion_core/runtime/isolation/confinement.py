"""Turn a checked plan's command into the one that is started in a tier."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from companion_core.decisions.isolation import Tier
from companion_core.egress.backend_channel import BrokeredChannel
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import TcpChannel
from companion_core.runtime.isolation import sandbox_exec
from companion_core.runtime.isolation.bubblewrap import find_bubblewrap, wrap
from companion_core.runtime.isolation.policy import (
    SandboxPolicy,
    interpreter_paths,
)

__all__ = ["Confined", "broker_command", "confine", "open_broker", "with_fresh_bytecode"]


_BROKER: Final = Path(__file__).parents[1] / "standalone" / "broker.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """What the keeper starts.

    Attributes:
        argv: the whole command.
        env: the planned environment and what the tier itself adds to it.
        policy: what the keeper's child locks itself in with, before the command; None: nothing.
        programs: how many programs follow one another down to the runtime; 0: it is the command.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    policy: Mapping[str, Any] | None = None
    programs: int = 0


def confine(
    tier: Tier,
    argv: Sequence[str],
    env: Mapping[str, str],
    reach: SandboxPolicy,
    *,
    folder: Path,
    helpers: int = 0,
) -> Confined:
    """Return the command that runs `argv`, confined.

    Args:
        tier: as `choose_tier` chose it.
        argv: the planned command, perhaps behind a helper.
        env: the planned environment.
        reach: what it may reach.
        folder: the working folder.
        helpers: programs in `argv` before the runtime's own.

    Raises:
        EnvironmentUnavailable: `isolation_unavailable` where what worked is gone.
    """
    command = tuple(argv)
    if helpers:
        reach = replace(reach, read=(*reach.read, *interpreter_paths(), str(_BROKER)))
    if tier is Tier.BUBBLEWRAP:
        bubblewrap = find_bubblewrap()
        if bubblewrap is None:
            raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
        wrapped = wrap(bubblewrap, command, reach, folder=str(folder))
        # It sets PWD to where it starts the command.
        return Confined(argv=wrapped, env={**env, "PWD": str(folder)}, programs=helpers + 1)
    if tier is Tier.SANDBOX_EXEC:
        return Confined(argv=sandbox_exec.wrap(command, reach), env=env, programs=helpers)
    policy = reach.policy() if tier is Tier.LANDLOCK else None
    return Confined(argv=command, env=env, policy=policy, programs=helpers)


def open_broker(listener: TcpChannel) -> tuple[BrokeredChannel, socket.socket]:
    """Return the companion's way to a listener in another network, and the broker's end of it."""
    if sys.platform == "win32":
        raise EnvironmentUnavailable(Reason.ISOLATION_UNAVAILABLE)
    line, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return BrokeredChannel(line, listener), far_end


def broker_command(line: int, listener: TcpChannel, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command that starts `argv` and hands out connections to its listener."""
    return (sys.executable, "-I", "-S", str(_BROKER), str(line), str(listener.port), *argv)


def with_fresh_bytecode(argv: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return an embedded plan's command that compiles what it imports, and keeps none of it.

    It also writes its output at once (`-u`): an isolated interpreter reads no PYTHONUNBUFFERED.

    The plugin's sources were hashed; a compiled file left beside them was not.
    """
    interpreter, isolated, *rest = argv
    cache = f"pycache_prefix={folder / 'bytecode'}"
    return (interpreter, isolated, "-u", "-B", "-X", cache, *rest)
