"""Read back what really runs: the tree, its environment, its listening sockets (I-06, I-07).

Read-only look-ups. On Linux through `/proc`, sockets in each process's own network
namespace; elsewhere through psutil. What exists and cannot be read is None, which every
rule takes as no.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from companion_core.decisions.runtime_readback import Listener

__all__ = ["descendants", "environment_names", "listeners", "runtime_below"]

_TCP_LISTEN: Final = b"0A"
_UDP_OPEN: Final = b"07"  # not connected: anyone may send to it
_TABLES: Final = (
    ("tcp", _TCP_LISTEN),
    ("tcp6", _TCP_LISTEN),
    ("udp", _UDP_OPEN),
    ("udp6", _UDP_OPEN),
)
_ZOMBIE_STATES: Final = frozenset({b"Z", b"X"})


def descendants(root: int) -> tuple[int, ...]:
    """Return the living processes below `root` or, its keeper gone, still in its session."""
    if sys.platform != "linux":
        return _descendants_elsewhere(root)
    children: dict[int, list[int]] = {}
    in_session: list[int] = []
    for pid, parent, session in _living():
        children.setdefault(parent, []).append(pid)
        if session == root:
            in_session.append(pid)
    waiting = [root, *in_session]
    for pid in waiting:
        waiting += children.get(pid, [])
    return tuple(dict.fromkeys(pid for pid in waiting if pid != root))


def runtime_below(started: int, programs: int) -> int | None:
    """Return the process that `programs` programs, one below the other, lead down to.

    A program may fork before it executes the next one: only a new command line counts.

    Args:
        started: the process of the first one.
        programs: how many to pass; the last of them is the runtime.

    Returns:
        None while it is not there yet.
    """
    children: dict[int, int] = {}
    for pid, parent, _ in _living():
        children.setdefault(parent, pid)
    pid, line = started, _command_line(started)
    while programs:
        below = children.get(pid)
        seen = b"" if below is None else _command_line(below)
        if below is None or not seen:
            return None
        if seen != line:
            programs -= 1
        pid, line = below, seen
    return pid


def environment_names(pid: int) -> frozenset[str] | None:
    """Return the names in a process's environment; None when they cannot be read.

    Raises:
        ProcessLookupError: there is no such process any more.
    """
    if sys.platform != "linux":
        return _environment_names_elsewhere(pid)
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except FileNotFoundError as error:
        raise ProcessLookupError from error
    except ProcessLookupError:
        raise
    except OSError:
        return None
    if not block:  # it is ending: its memory is gone before its entry is
        raise ProcessLookupError
    entries = (entry for entry in block.split(b"\0") if entry)
    return frozenset(os.fsdecode(entry.partition(b"=")[0]) for entry in entries)


def listeners(pids: Iterable[int]) -> frozenset[Listener] | None:
    """Return what the processes listen on; None when one of them cannot be read."""
    if sys.platform != "linux":
        return _listeners_elsewhere(pids)
    found: set[Listener] = set()
    for pid in pids:
        try:
            held = _socket_inodes(pid)
            if held:
                found |= _listening(pid, held)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, and its sockets with it
        except OSError:
            return None
    return frozenset(found)


def _living() -> Iterator[tuple[int, int, int]]:
    """Yield process, parent and session of everything that lives."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all it takes
        if not entry.isdigit():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_bytes().rsplit(b")", 1)[1].split()
        except (OSError, IndexError):
            continue  # it ended meanwhile
        if fields[0] not in _ZOMBIE_STATES:
            yield int(entry), int(fields[1]), int(fields[3])


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _socket_inodes(pid: int) -> set[bytes]:
    folder = f"/proc/{pid}/fd"
    inodes: set[bytes] = set()
    for name in os.listdir(folder):  # noqa: PTH208 - as above
        try:
            target = os.readlink(f"{folder}/{name}".encode())  # noqa: PTH115 - bytes in, bytes out
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith(b"socket:["):
            inodes.add(target[8:-1])
    return inodes


def _listening(pid: int, held: set[bytes]) -> set[Listener]:
    found: set[Listener] = set()
    for table, wanted in _TABLES:
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_bytes().splitlines()[1:]
        except FileNotFoundError:
            if not Path(f"/proc/{pid}").exists():
                raise
            continue  # a system without IPv6
        for row in rows:
            fields = row.split()
            if fields[3] == wanted and fields[9] in held:
                address, _, port = fields[1].partition(b":")
                found.add(Listener(table[:3], _address(address), int(port, 16)))
    return found


def _address(text: bytes) -> str:
    """Return the address that the kernel prints as words in the machine's byte order."""
    words = (text[at : at + 8] for at in range(0, len(text), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _descendants_elsewhere(root: int) -> tuple[int, ...]:
    import psutil  # noqa: PLC0415 - needed only where /proc is not

    try:
        return tuple(child.pid for child in psutil.Process(root).children(recursive=True))
    except psutil.NoSuchProcess:
        return ()


def _environment_names_elsewhere(pid: int) -> frozenset[str] | None:
    import psutil  # noqa: PLC0415 - as above

    try:
        names = frozenset(psutil.Process(pid).environ())
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
    except (psutil.AccessDenied, OSError):
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
        except (psutil.AccessDenied, OSError):
            return None
        for connection in connections:
            stream = connection.type == socket.SOCK_STREAM
            waits = connection.status == psutil.CONN_LISTEN if stream else not connection.raddr
            if waits and connection.laddr:
                protocol = "tcp" if stream else "udp"
                found.add(Listener(protocol, connection.laddr.ip, connection.laddr.port))
    return frozenset(found)
