"""What listens in a network namespace of Linux, and which socket it is (I-07).

The kernel is asked for listening sockets alone (sock_diag(7)), through a socket that was made
in that namespace: the tables in `/proc` walk every connection of the machine, which takes
milliseconds. Where there is no such socket, or no answer, there are only the tables. A socket
stays in the namespace that it was made in, wherever its process goes: ours is always looked at.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.process_tree import read_entry

__all__ = ["Diagnosis", "listening_sockets"]

_LISTEN: Final = 0x0A
_UNCONNECTED: Final = 0x07  # of UDP: anyone may send to it
_TABLES: Final = {
    "tcp": (socket.AF_INET, socket.IPPROTO_TCP, _LISTEN),
    "tcp6": (socket.AF_INET6, socket.IPPROTO_TCP, _LISTEN),
    "udp": (socket.AF_INET, socket.IPPROTO_UDP, _UNCONNECTED),
    "udp6": (socket.AF_INET6, socket.IPPROTO_UDP, _UNCONNECTED),
}
_NETLINK_SOCK_DIAG: Final = 4
_SIOCGSKNS: Final = 0x894C
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DUMP_INTERRUPTED: Final = 0x10
_NLMSG_DONE: Final = 3
# struct nlmsghdr; struct inet_diag_req_v2 up to its states, behind it the socket's identity.
_HEADER: Final = struct.Struct("=IHHII")
_QUESTION: Final = struct.Struct("=BBxxI48x")
# struct inet_diag_msg: the family, the port and address of the socket's own end, the inode.
_ANSWER: Final = struct.Struct("=B3x2s2x16s44xI")
_ANSWER_BYTES: Final = 65536


class Diagnosis:
    """Tells what listens in the network namespace that a socket of sock_diag(7) was made in.

    Args:
        kernel: that socket; taken over.
    """

    def __init__(self, kernel: socket.socket) -> None:
        kernel.settimeout(0)  # the kernel answers before it returns from the question
        self._kernel = kernel
        self._turn = threading.Lock()

    @cached_property
    def namespace(self) -> int | None:
        """Its number, as `/proc/PID/ns/net` has it; None where the kernel does not say."""
        if sys.platform != "linux":
            return None
        import fcntl  # noqa: PLC0415 - Unix has it

        try:
            namespace = fcntl.ioctl(self._kernel.fileno(), _SIOCGSKNS)
        except (OSError, ValueError):
            return None  # another person's, or it was just closed
        try:
            return os.fstat(namespace).st_ino
        finally:
            os.close(namespace)

    def close(self) -> None:
        """Let go of the socket, and of the namespace with it."""
        with self._turn:
            self._kernel.close()

    def listening(self, tables: Iterable[str], inodes: Container[int]) -> list[Listener]:
        """Return those of some sockets that listen; `OSError` where the kernel does not answer."""
        with self._turn:
            return [found for name in tables for found in self._ask(name, inodes)]

    def _ask(self, name: str, inodes: Container[int]) -> Iterator[Listener]:
        kernel = self._kernel
        family, protocol, state = _TABLES[name]
        question = _QUESTION.pack(family, protocol, 1 << state)
        head = (_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0)
        with contextlib.suppress(BlockingIOError):
            while kernel.recv(_ANSWER_BYTES):  # of a question that was given up
                pass
        kernel.send(_HEADER.pack(*head) + question)
        while True:
            data = kernel.recv(_ANSWER_BYTES)
            while data:
                length, kind, flags, _, _ = _HEADER.unpack_from(data)
                if flags & _DUMP_INTERRUPTED:
                    raise OSError
                if kind == _NLMSG_DONE:
                    if any(data[_HEADER.size : length]):  # an error's number: it has not answered
                        raise OSError
                    return
                if kind != _SOCK_DIAG_BY_FAMILY:
                    raise OSError
                found, port, packed, inode = _ANSWER.unpack_from(data, _HEADER.size)
                if inode in inodes:
                    address = packed[:4] if found == socket.AF_INET else packed
                    yield Listener(name[:3], _text(address), int.from_bytes(port, "big"))
                data = data[(length + 3) & ~3 :]


def listening_sockets(
    pid: int, tables: Iterable[str], inodes: Container[int], *, inside: Diagnosis | None = None
) -> Iterator[Listener]:
    """Yield those of some sockets that listen, in the network namespace of a process or ours.

    Args:
        pid: the process, or one of its threads.
        tables: which to look into, of tcp, tcp6, udp and udp6.
        inodes: of the sockets.
        inside: of another namespace, which the process may be in.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process any more.
        OSError: it cannot be read.
    """
    tables = tuple(tables)
    theirs, ours = os.stat(f"/proc/{pid}/ns/net").st_ino, os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - in half the time
    yield from _look("self", tables, inodes, _ask_here)
    if theirs != ours:
        ask = inside.listening if inside is not None and inside.namespace == theirs else None
        yield from _look(str(pid), tables, inodes, ask)


def _look(
    of: str,
    tables: Iterable[str],
    inodes: Container[int],
    ask: Callable[[Iterable[str], Container[int]], list[Listener]] | None,
) -> list[Listener]:
    if ask is not None:
        # Else a kernel without this interface, or a filter that denies it.
        with contextlib.suppress(OSError, struct.error):
            return ask(tables, inodes)
    return [found for name in tables for found in _read_table(of, name, inodes)]


def _ask_here(tables: Iterable[str], inodes: Container[int]) -> list[Listener]:
    if sys.platform != "linux":
        raise OSError
    here = Diagnosis(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG))
    try:
        return here.listening(tables, inodes)
    finally:
        here.close()


def _read_table(pid: str, name: str, inodes: Container[int]) -> Iterator[Listener]:
    state = _TABLES[name][-1]
    try:
        rows = read_entry(f"/proc/{pid}/net/{name}").splitlines()[1:]
    except FileNotFoundError:
        if not Path(f"/proc/{pid}").exists():
            raise
        return  # a system without IPv6
    for row in rows:
        fields = row.split()
        if int(fields[3], 16) == state and int(fields[9]) in inodes:
            address, _, port = fields[1].partition(b":")
            yield Listener(name[:3], _address(address), int(port, 16))


def _address(text: bytes) -> str:
    """Return the address that the kernel prints as words in the machine's byte order."""
    words = (text[at : at + 8] for at in range(0, len(text), 8))
    return _text(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))


def _text(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
