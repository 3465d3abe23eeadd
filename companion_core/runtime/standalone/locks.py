"""Landlock and seccomp: a process without privileges locks itself in, for good.

The keeper loads this file into the forked child, so it imports only the standard library and
nothing of the package. Kernel interfaces: landlock(7), seccomp(2), prctl(2).

`lock` takes a `LockPolicy` as JSON has it. It denies access to all files but the paths given. It
allows one kind of socket, a Unix stream or a TCP stream that listens on one port, and no connection
to anywhere. It denies calls that reach into other processes, keys or the kernel itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["landlock_version", "lock", "seccomp_works"]

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_FIRST_ACCESS = (1 << 13) - 1
_PATH_ALONE: Final[int] = getattr(os, "O_PATH", 0) | getattr(os, "O_CLOEXEC", 0)
# The first version of the interface that can handle each kind of access.
_REFER_SINCE, _TRUNCATE_SINCE, _NETWORK_SINCE, _IOCTL_SINCE, _SCOPE_SINCE = 2, 3, 4, 5, 6

# By machine: the kernel's number for it, and the numbers of the calls that the filter compares.
_MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "socket": 41,
        "connect": 42,
        "ptrace": 101,
        "pivot_root": 155,
        "chroot": 161,
        "mount": 165,
        "umount2": 166,
        "init_module": 175,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "finit_module": 313,
        "bpf": 321,
        "userfaultfd": 323,
        "io_uring_setup": 425,
        "pidfd_getfd": 438,
    },
    "aarch64": {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "ptrace": 117,
        "socket": 198,
        "connect": 203,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "io_uring_setup": 425,
        "pidfd_getfd": 438,
    },
}
_X32_BIT = 0x40000000
# Classic BPF: load a word, jump if equal, jump if greater or equal, bitwise and, return.
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_OFFSET_NUMBER, _OFFSET_MACHINE, _OFFSET_FIRST, _OFFSET_SECOND = 0, 4, 16, 24
_AF_UNIX, _AF_INET, _AF_INET6, _SOCK_STREAM, _TYPE_MASK = 1, 2, 10, 1, 0xF


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


class _PortRule(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def landlock_version() -> int:
    """Return the version of the interface; 0 where there is none."""
    try:
        return _call(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def seccomp_works() -> bool:
    """Tell whether filters can be installed here, without installing one."""
    if platform.machine() not in _MACHINES:
        return False
    # A kernel that knows filters looks for the program at address 0, and fails with EFAULT.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def lock(policy: Mapping[str, Any]) -> None:
    """Lock in the calling process and all that it will start.

    Args:
        policy: `read`, `write` and `devices` are lists of paths, of which missing ones are
            skipped; `port` is the one to listen on, None for Unix sockets.

    Raises:
        OSError: the kernel refused; the caller must not go on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _restrict_files(policy)
    code = b"".join(struct.pack("HBBI", *step) for step in _program(policy["port"]))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _restrict_files(policy: Mapping[str, Any]) -> None:
    version = landlock_version()
    every = _FIRST_ACCESS
    for since, access in ((_REFER_SINCE, _REFER), (_TRUNCATE_SINCE, _TRUNCATE)):
        every |= access if version >= since else 0
    ioctl = _IOCTL_DEV if version >= _IOCTL_SINCE else 0
    network = _BIND_TCP | _CONNECT_TCP if version >= _NETWORK_SINCE else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= _SCOPE_SINCE else 0
    attributes = _Ruleset(every | ioctl, network, scoped)
    # An older kernel accepts the longer structure only if the fields it does not know are zero.
    ruleset = _call(
        _LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0
    )
    try:
        _allow(ruleset, policy["read"], _EXECUTE | _READ_FILE | _READ_DIR, every)
        _allow(ruleset, policy["write"], every, every)
        _allow(ruleset, policy["devices"], _READ_FILE | _WRITE_FILE | _READ_DIR | ioctl, every)
        if network and policy["port"] is not None:
            rule = _PortRule(_BIND_TCP, policy["port"])
            _call(_LANDLOCK_ADD_RULE, ruleset, _RULE_NET_PORT, ctypes.byref(rule), 0)
        _call(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], access: int, every: int) -> None:
    of_files = _EXECUTE | _WRITE_FILE | _READ_FILE | _IOCTL_DEV | (_TRUNCATE & every)
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, _PATH_ALONE)
            try:
                folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                rule = _PathRule(access if folder else access & of_files, descriptor)
                _call(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
            finally:
                os.close(descriptor)


def _program(port: int | None) -> list[tuple[int, int, int, int]]:
    """Return the filter: operation, how far to jump if true, if false, and a value, per step."""
    name = platform.machine()
    machine, calls = _MACHINES[name], dict(_CALLS[name])
    sockets = calls.pop("socket")
    families = (_AF_UNIX,) if port is None else (_AF_INET, _AF_INET6)
    steps = [(_LOAD, 0, 0, _OFFSET_MACHINE), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _OFFSET_NUMBER)]
    if name == "x86_64":  # the same calls exist there under other numbers too
        steps += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _DENY)]
    for number in calls.values():
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    steps += [(_EQUAL, 1, 0, sockets), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_LOAD, 0, 0, _OFFSET_FIRST)]
    for left, family in enumerate(families):  # a match jumps past the refusal
        steps += [(_EQUAL, len(families) - left, 0, family)]
    steps += [(_RETURN, 0, 0, _DENY)]
    steps += [(_LOAD, 0, 0, _OFFSET_SECOND), (_AND, 0, 0, _TYPE_MASK)]
    steps += [(_EQUAL, 0, 1, _SOCK_STREAM), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    return steps


def _call(number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    return result
