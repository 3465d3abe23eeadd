"""Rules for this file: whether a started runtime is what was planned (I-06, I-07).

Pure; imports values only. It judges what was read back from the process tree: the names in the
environment, the listening sockets, and the peer of a connection. What could not be read counts as
a refusal.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.providers import TcpChannel, UnixChannel

__all__ = [
    "Listener",
    "LoopbackChannel",
    "check_environment",
    "check_listeners",
    "check_peer",
]


_DRIVERS_NAME: Final = "@cuda-uvmfd-"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that other programs reach without a file: listening TCP, open UDP, or by a name.

    Attributes:
        protocol: tcp, udp or unix.
        address: as text; of a Unix socket "@" and its abstract name (unix(7)), which any user's
            program can connect to.
        port: of the address; 0 for a name.
        other_network: the socket was made in another network namespace than the companion's,
            where the same address and port may be another program's.
    """

    protocol: str
    address: str
    port: int
    other_network: bool = False


@dataclass(frozen=True, slots=True)
class LoopbackChannel(Verdict, Evidence):
    """Proof that a runtime's tree listened on its channel and nowhere wider.

    Only `check_listeners` gives it.
    """

    channel: UnixChannel | TcpChannel


def check_environment(
    runtime: frozenset[str] | None,
    descendants: Iterable[frozenset[str] | None],
    *,
    planned: frozenset[str],
    child_names: frozenset[str],
) -> Verdict:
    """Require exactly the planned names in the runtime and no undeclared one in its descendants.

    Args:
        runtime: the names in the started process; None when they could not be read.
        descendants: the same for each process below it.
        planned: the names that the core gave.
        child_names: the names that the runtime's descendants may add, as its plugin declared.
    """
    if runtime != planned:
        return refuse(Reason.RUNTIME_ENVIRONMENT)
    if any(names is None or not names <= planned | child_names for names in descendants):
        return refuse(Reason.RUNTIME_ENVIRONMENT)
    return OK


def check_listeners(
    listeners: frozenset[Listener] | None,
    channel: UnixChannel | TcpChannel,
    *,
    allow_open_backend: bool,
    own_network: bool = False,
) -> Verdict:
    """Require that the tree listens on its channel and nowhere else.

    If the person accepted an open backend, further loopback ports pass (Ollama's runner has one);
    a socket beyond loopback never does. A socket counts whichever network it was made in; the
    channel alone has to be in the one that the companion connects to. The name by which NVIDIA's
    driver finds itself in a process passes.

    Args:
        listeners: those of the tree; None when they could not be read.
        channel: where the runtime was told to listen.
        allow_open_backend: the person accepted it.
        own_network: the runtime was given a network of its own, which the channel is in.

    Returns:
        a `LoopbackChannel`; else `runtime_listens_wide`, or `health_failed` when no process of
        the tree listens on the channel.
    """
    proof = LoopbackChannel(ok=True, reason=Reason.OK, channel=channel)
    if listeners is None:
        return refuse(Reason.RUNTIME_LISTENS_WIDE)
    listeners = frozenset(each for each in listeners if not _is_drivers(each))
    if isinstance(channel, UnixChannel):
        return refuse(Reason.RUNTIME_LISTENS_WIDE) if listeners else proof
    if not _is_loopback(channel.host):
        return refuse(Reason.RUNTIME_LISTENS_WIDE)
    own = Listener("tcp", channel.host, channel.port, other_network=own_network)
    for listener in listeners - {own}:
        if not allow_open_backend or not _is_loopback(listener.address):
            return refuse(Reason.RUNTIME_LISTENS_WIDE)
    return proof if own in listeners else refuse(Reason.HEALTH_FAILED)


def check_peer(pid: int, tree: frozenset[int], *, ended: bool) -> Verdict:
    """Require that whoever answers on a Unix socket is a living process of the runtime's tree.

    Args:
        pid: of the process that listens, 0 where the system does not tell.
        tree: the living processes of the runtime.
        ended: the process is no more, and its number may be another's.
    """
    if pid <= 0 or ended or pid not in tree:
        return refuse(Reason.BACKEND_FOREIGN)
    return OK


def _is_drivers(listener: Listener) -> bool:
    return listener.protocol == "unix" and listener.address.startswith(_DRIVERS_NAME)


@lru_cache(maxsize=64)
def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
