"""What listens in a network namespace of Linux, and which socket that is (I-07).

The kernel walks every connection of the machine to print its tables, which takes milliseconds: they
are read only for sockets that cannot be asked themselves. A socket stays in the namespace in which
it was made, wherever its process goes: so ours is always read too.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.process.proc_files import read_entry

__all__ = ["abstract_name", "listening_sockets", "plain_address"]

_LISTEN: Final = 0x0A
_UNCONNECTED: Final = 0x07  # a UDP socket without a peer: anyone may send to it
# Of Unix sockets: the flag of one that listens, and the type of one without connections.
_ACCEPTS: Final = 0x10000
_DATAGRAMS: Final = b"0002"
_NAMED: Final = re.compile(
    rb"[0-9a-f]+: [0-9A-F]+ [0-9A-F]+ (?P<flags>[0-9A-F]{8}) (?P<kind>[0-9A-F]{4})"
    rb" [0-9A-F]{2} +(?P<inode>[0-9]+) (?P<name>@.*)",
    re.DOTALL,
)
_STATES: Final = {"tcp": _LISTEN, "tcp6": _LISTEN, "udp": _UNCONNECTED, "udp6": _UNCONNECTED}


def listening_sockets(
    pid: int, tables: Iterable[str], inodes: Container[int]
) -> Iterator[Listener]:
    """Yield which of the given sockets listen, in the namespace of a process or in ours.

    Args:
        pid: the process, or one of its threads.
        tables: those to read: tcp, tcp6, udp, udp6; and unix, in our namespace alone.
        inodes: of the sockets.

    Raises:
        FileNotFoundError, ProcessLookupError: the process is gone.
        OSError: it cannot be read.
    """
    tables = tuple(tables)
    theirs, ours = os.stat(f"/proc/{pid}/ns/net").st_ino, os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - a Path takes twice the time
    for network in ("self",) if theirs == ours else ("self", str(pid)):
        for name in tables:
            if name != "unix":
                yield from _read_table(network, name, inodes)
            elif network == "self":
                yield from _read_names(inodes)


def plain_address(address: str | bytes) -> str:
    """Return an address as text; an IPv4 address mapped into IPv6 is returned as IPv4."""
    if isinstance(address, str) and ":" not in address:
        return address
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(parsed if mapped is None else mapped)


def abstract_name(name: bytes) -> str:
    """Return the abstract name of a Unix socket as text, with "@" for its first byte."""
    return "@" + name[1:].replace(b"\0", b"@").decode("ascii", "backslashreplace")


def _read_names(inodes: Container[int]) -> Iterator[Listener]:
    """Yield which Unix sockets listen by an abstract name.

    A name may contain what looks like the end of a line, and then like another line. Whether a
    datagram socket has a peer cannot be seen here: each one with a name counts.
    """
    for row in read_entry("/proc/self/net/unix").split(b"\n")[1:]:
        match = _NAMED.match(row)
        if match is None or int(match["inode"]) not in inodes:
            continue
        if match["kind"] == _DATAGRAMS or int(match["flags"], 16) & _ACCEPTS:
            yield Listener("unix", abstract_name(match["name"]), 0)


def _read_table(network: str, name: str, inodes: Container[int]) -> Iterator[Listener]:
    state = _STATES[name]
    try:
        rows = read_entry(f"/proc/{network}/net/{name}").splitlines()[1:]
    except FileNotFoundError:
        if not Path(f"/proc/{network}").exists():
            raise
        return  # a system without IPv6
    for row in rows:
        fields = row.split()
        if int(fields[3], 16) == state and int(fields[9]) in inodes:
            address, _, port = fields[1].partition(b":")
            other = network != "self"
            yield Listener(name[:3], _address(address), int(port, 16), other_network=other)


def _address(text: bytes) -> str:
    """Return the address that the kernel prints as words in the machine's byte order."""
    words = (text[at : at + 8] for at in range(0, len(text), 8))
    return plain_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))
