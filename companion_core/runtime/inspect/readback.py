"""Read back what really runs: each process's environment and listening sockets (I-06, I-07).

Read-only look-ups. On Linux through `/proc`: the sockets in every table of descriptors of a
process, in its network namespace; elsewhere through psutil. What exists and cannot be read is
None, which every rule takes as no.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.inspect.descriptor_tables import table_holders
from companion_core.runtime.inspect.held_sockets import listening_among
from companion_core.runtime.inspect.socket_tables import listening_sockets
from companion_core.runtime.process.tree import (
    environment_is_set,
    has_memory,
    read_entry,
    require_means,
    thread_has_memory,
)

__all__ = ["HeldListener", "environment_names", "find_listener", "listeners", "still_listens"]

# As the kernel names them: those that nobody reaches from outside, and where others are listed.
_LOCAL_PROTOCOLS: Final = frozenset({b"UNIX", b"UNIX-STREAM", b"NETLINK", b"ALG"})
_TABLES: Final = {
    b"TCP": "tcp",
    b"TCPv6": "tcp6",
    b"MPTCP": "tcp",
    b"MPTCPv6": "tcp6",
    b"UDP": "udp",
    b"UDPv6": "udp6",
}
_EXEC_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.001


def environment_names(pid: int, *, wait: bool = True) -> frozenset[str] | None:
    """Return the names in a process's environment; None when they cannot be read.

    A process that is just being executed has none for a moment, and one that is ending lets
    nobody look while it gives its memory back: both are waited for, half a second at most.

    Raises:
        BlockingIOError: it would have to be waited for, and `wait` is false.
        ProcessLookupError: there is no such process any more.
        ProcessUnreadable: the system does not say whether it has an environment yet, or there is
            nothing left to look with.
    """
    if sys.platform != "linux":
        return _environment_names_elsewhere(pid)
    deadline = time.monotonic() + _EXEC_SECONDS
    while True:
        try:
            block = _environment(pid)
        except FileNotFoundError as error:
            raise ProcessLookupError from error
        except ProcessLookupError:
            raise
        except PermissionError:
            block = None  # another person's, or it is ending
        except OSError as error:
            require_means(error)
            return None
        if block is not None:
            entries = (entry for entry in block.split(b"\0") if entry)
            return frozenset(os.fsdecode(entry.partition(b"=")[0]) for entry in entries)
        if not has_memory(pid):
            raise ProcessLookupError
        if not wait:
            raise BlockingIOError
        if time.monotonic() > deadline:
            return None
        time.sleep(_PAUSE_SECONDS)


def _environment(pid: int) -> bytes | None:
    """Return the block of a process's environment; None while it has none yet."""
    path = f"/proc/{pid}/environ"
    block = read_entry(path)
    if not block and environment_is_set(pid):
        return read_entry(path)  # it was set behind the first look, or it is empty
    return block or None


def listeners(pids: Iterable[int]) -> frozenset[Listener] | None:
    """Return what the processes listen on; None when one of them cannot be read.

    Raises:
        ProcessUnreadable: there is nothing left to look with.
    """
    if sys.platform != "linux":
        return _listeners_elsewhere(pids)
    found: set[Listener] = set()
    for pid in pids:
        try:
            for holder in table_holders(pid):
                if (held := _listeners_of(holder)) is None:
                    return None
                found |= held
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            require_means(error)
            return None
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class HeldListener:
    """A socket that listens, and who has it.

    Attributes:
        holder: a process, or a thread with descriptors of its own.
        number: of its descriptor; with `inode` and `kind` 0, 0 and "" where there is no `/proc`.
        inode: of the socket; no other has it while this one is there.
        kind: tcp or tcp6.
    """

    holder: int
    number: int
    inode: int
    kind: str


def find_listener(pids: Iterable[int], own: Listener) -> HeldListener | None:
    """Return a socket by which one of the processes listens as `own` says; None without one.

    Raises:
        ProcessUnreadable: there is nothing left to look with.
    """
    for pid in pids:
        try:
            holders = table_holders(pid) if sys.platform == "linux" else [pid]
            for holder in holders:
                for held in _held_streams(holder):
                    if still_listens(held, own):
                        return held
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            require_means(error)
    return None


def still_listens(held: HeldListener, own: Listener) -> bool:
    """Tell whether the holder still has that very socket, and it listens as `own` says.

    Takes some twenty microseconds where the socket can be asked itself.
    """
    if sys.platform != "linux":
        return own in (_listeners_elsewhere((held.holder,)) or ())
    found, unasked = listening_among(held.holder, {held.inode: (held.number, held.kind)})
    if not unasked:
        return own in found
    try:
        if os.readlink(f"/proc/{held.holder}/fd/{held.number}") != f"socket:[{held.inode}]":  # noqa: PTH115 - in half the time
            return False
        return own in listening_sockets(held.holder, (held.kind,), unasked)
    except OSError:
        return False


def _held_streams(holder: int) -> list[HeldListener]:
    """Return what may listen for streams."""
    if sys.platform != "linux":
        return [HeldListener(holder, 0, 0, "")]
    return [
        HeldListener(holder, number, inode, kind)
        for inode, (number, kind) in (_network_sockets(holder) or {}).items()
        if kind.startswith("tcp")
    ]


def _listeners_of(holder: int) -> frozenset[Listener] | None:
    """Return what the table of one thread holds (the first has its process's number), or None."""
    try:
        held = _network_sockets(holder)
        if not held:
            return None if held is None else frozenset()
        found, unasked = listening_among(holder, held)
        # Whoever has those now, a table lists the ones that listen.
        tables = {held[inode][1] for inode in unasked}
        return found.union(listening_sockets(holder, tables, unasked) if unasked else ())
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()  # it ended meanwhile, and its sockets with it
    except PermissionError:
        return None if thread_has_memory(holder) else frozenset()
    except OSError as error:
        require_means(error)
        return None


def _network_sockets(holder: int) -> dict[int, tuple[int, str]] | None:
    """Return what may listen to the network: by inode, a descriptor and the table that lists it.

    None for a socket of an unknown kind.
    """
    if sys.platform != "linux":
        return None
    folder = f"/proc/{holder}/fd"
    held: dict[int, tuple[int, str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208 - names are all it takes
        path = f"{folder}/{name}"
        try:
            target = os.readlink(path)  # noqa: PTH115 - as above
            if not target.startswith("socket:["):
                continue
            protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0")
        except FileNotFoundError:
            continue  # closed meanwhile
        if protocol in _TABLES:
            held[int(target[8:-1])] = int(name), _TABLES[protocol]
        elif protocol not in _LOCAL_PROTOCOLS:
            return None
    return held


def _environment_names_elsewhere(pid: int) -> frozenset[str] | None:
    import psutil  # noqa: PLC0415 - as above

    try:
        names = frozenset(psutil.Process(pid).environ())
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
    except psutil.AccessDenied:
        return None
    except OSError as error:
        require_means(error)
        return None
    if not names:  # it is ending, or another program takes its place just now
        raise ProcessLookupError
    return names


def _listeners_elsewhere(pids: Iterable[int]) -> frozenset[Listener] | None:
    import socket  # noqa: PLC0415 - as above

    import psutil  # noqa: PLC0415 - as above

    found: set[Listener] = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            return None
        except OSError as error:
            require_means(error)
            return None
        for connection in connections:
            stream = connection.type == socket.SOCK_STREAM
            waits = connection.status == psutil.CONN_LISTEN if stream else not connection.raddr
            if waits and connection.laddr:
                protocol = "tcp" if stream else "udp"
                found.add(Listener(protocol, connection.laddr.ip, connection.laddr.port))
    return frozenset(found)
