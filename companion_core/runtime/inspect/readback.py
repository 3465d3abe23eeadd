"""Read back what really runs: each process's environment and listening sockets (I-06, I-07).

Read-only look-ups: on Linux in `/proc`, where each table of descriptors of a process is read;
elsewhere through psutil. For what exists and cannot be read they return None, which every rule
takes as a no.
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
from companion_core.runtime.process.proc_files import (
    environment_is_set,
    has_memory,
    read_entry,
    require_means,
    thread_has_memory,
)

__all__ = ["ListeningSocket", "environment_names", "find_listener", "listeners", "still_listens"]

# The kernel's names of protocols: those that nothing outside can reach, and for the others the
# table in /proc/net that lists them.
_LOCAL_PROTOCOLS: Final = frozenset({b"NETLINK", b"ALG"})
_TABLES: Final = {
    b"UNIX": "unix",
    b"UNIX-STREAM": "unix",
    b"TCP": "tcp",
    b"TCPv6": "tcp6",
    b"MPTCP": "tcp",
    b"MPTCPv6": "tcp6",
    b"UDP": "udp",
    b"UDPv6": "udp6",
}
_EXEC_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.001


def environment_names(
    pid: int, *, wait: bool = True, longest: float = _EXEC_SECONDS
) -> frozenset[str] | None:
    """Return the names in a process's environment; None when they cannot be read.

    A process that is just being executed has none for a moment, and one that is ending lets
    nobody look while it gives its memory back. Both are waited for, `longest` seconds at most.

    Raises:
        BlockingIOError: it would have to be waited for, and `wait` is false.
        ProcessLookupError: the process is gone.
        ProcessUnreadable: the system does not say whether it has an environment yet, or no
            descriptor or memory is left to look with.
    """
    if sys.platform != "linux":
        return _environment_names_elsewhere(pid)
    deadline = time.monotonic() + longest
    while True:
        try:
            block = _environment(pid)
        except FileNotFoundError as error:
            raise ProcessLookupError from error
        except ProcessLookupError:
            raise
        except PermissionError:
            block = None  # it is another person's, or it is ending
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
        return read_entry(path)  # it was set after the first look, or it is empty
    return block or None


def listeners(pids: Iterable[int]) -> frozenset[Listener] | None:
    """Return what the processes listen on; None when one of them cannot be read.

    Raises:
        ProcessUnreadable: no descriptor or memory is left to look with.
    """
    if sys.platform != "linux":
        return _listeners_elsewhere(pids)
    found: set[Listener] = set()
    for pid in pids:
        try:
            for holder in table_holders(pid):
                if (seen := _listeners_of(holder)) is None:
                    return None
                found |= seen
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            require_means(error)
            return None
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket that listens, and the process that has it open.

    Attributes:
        holder: a process, or a thread with descriptors of its own.
        number: of its descriptor; without `/proc`, this and `inode` are 0 and `kind` is empty.
        inode: of the socket; no other socket has it while this one exists.
        kind: tcp or tcp6.
    """

    holder: int
    number: int
    inode: int
    kind: str


def find_listener(pids: Iterable[int], own: Listener) -> ListeningSocket | None:
    """Return a socket with which one of the processes listens as `own` says, or None.

    Raises:
        ProcessUnreadable: no descriptor or memory is left to look with.
    """
    for pid in pids:
        try:
            holders = table_holders(pid) if sys.platform == "linux" else [pid]
            for holder in holders:
                for found in _stream_sockets(holder):
                    if still_listens(found, own):
                        return found
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            require_means(error)
    return None


def still_listens(known: ListeningSocket, own: Listener) -> bool:
    """Tell whether the holder still has that very socket open, and it listens as `own` says.

    It takes some twenty microseconds where the socket itself can be asked.

    Raises:
        ProcessUnreadable: no descriptor or memory is left to look with.
    """
    if sys.platform != "linux":
        return own in (_listeners_elsewhere((known.holder,)) or ())
    found, unasked = listening_among(known.holder, {known.inode: (known.number, known.kind)})
    if not unasked:
        return own in found
    try:
        if os.readlink(f"/proc/{known.holder}/fd/{known.number}") != f"socket:[{known.inode}]":  # noqa: PTH115 - a Path takes twice the time
            return False
        return own in listening_sockets(known.holder, (known.kind,), unasked)
    except OSError as error:
        require_means(error)
        return False


def _stream_sockets(holder: int) -> list[ListeningSocket]:
    """Return the sockets that may listen for streams."""
    if sys.platform != "linux":
        return [ListeningSocket(holder, 0, 0, "")]
    return [
        ListeningSocket(holder, number, inode, kind)
        for inode, (number, kind) in (_network_sockets(holder) or {}).items()
        if kind.startswith("tcp")
    ]


def _listeners_of(holder: int) -> frozenset[Listener] | None:
    """Return what the sockets in one thread's table listen on; None if they cannot be read."""
    try:
        sockets = _network_sockets(holder)
        if not sockets:
            return None if sockets is None else frozenset()
        found, unasked = listening_among(holder, sockets)
        # The tables list the remaining ones that listen, whichever process has them now.
        tables = {sockets[inode][1] for inode in unasked}
        return found.union(listening_sockets(holder, tables, unasked) if unasked else ())
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()  # it has ended meanwhile, and its sockets are closed
    except PermissionError:
        return None if thread_has_memory(holder) else frozenset()
    except OSError as error:
        require_means(error)
        return None


def _network_sockets(holder: int) -> dict[int, tuple[int, str]] | None:
    """Return the sockets that others may reach, by inode: descriptor and table.

    None where there is a socket of an unknown kind.
    """
    if sys.platform != "linux":
        return None
    folder = f"/proc/{holder}/fd"
    sockets: dict[int, tuple[int, str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208 - only the names are needed
        path = f"{folder}/{name}"
        try:
            target = os.readlink(path)  # noqa: PTH115 - a Path takes twice the time
            if not target.startswith("socket:["):
                continue
            protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0")
        except FileNotFoundError:
            continue  # it was closed meanwhile
        if protocol in _TABLES:
            sockets[int(target[8:-1])] = int(name), _TABLES[protocol]
        elif protocol not in _LOCAL_PROTOCOLS:
            return None
    return sockets


def _environment_names_elsewhere(pid: int) -> frozenset[str] | None:
    import psutil  # noqa: PLC0415 - needed only on systems without /proc

    try:
        names = frozenset(psutil.Process(pid).environ())
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
    except psutil.AccessDenied:
        return None
    except OSError as error:
        require_means(error)
        return None
    if not names:  # it is ending, or is just executing another program
        raise ProcessLookupError
    return names


def _listeners_elsewhere(pids: Iterable[int]) -> frozenset[Listener] | None:
    import socket  # noqa: PLC0415 - needed only on systems without /proc

    import psutil  # noqa: PLC0415 - needed only on systems without /proc

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
