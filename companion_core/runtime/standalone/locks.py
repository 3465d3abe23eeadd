"""Landlock and seccomp: a process without privileges locks itself in, for good.

The keeper loads this file into the forked child, so it imports only the standard library and
nothing of the package. Kernel interfaces: landlock(7), seccomp(2), prctl(2), capabilities(7),
session-keyring(7).

`lock` takes a `LockPolicy` as JSON has it. It denies access to all files but the paths given, gives
up every right that root has, and installs the filter that the companion has compiled
(`isolation/call_filter.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["SCOPE_SINCE", "landlock_version", "leave_keyring", "lock", "seccomp_works"]

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
_REFER_SINCE, _TRUNCATE_SINCE, _NETWORK_SINCE, _IOCTL_SINCE, SCOPE_SINCE = 2, 3, 4, 5, 6

# By machine: the kernel's number of keyctl(2).
_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION, _MOST_CAPABILITIES = 0x20080522, 64


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
    # A kernel that knows filters looks for the program at address 0, and fails with EFAULT.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def leave_keyring() -> None:
    """Join a new, empty session keyring, so that the person's is not this process's too.

    Where the system has no keyrings, or lets nobody use them, there is none to leave.
    """
    if sys.platform == "linux" and (number := _KEYCTL.get(os.uname().machine)) is not None:
        with contextlib.suppress(OSError):
            _call(number, _KEYCTL_JOIN_SESSION_KEYRING, None)


def lock(policy: Mapping[str, Any], *, apart: bool) -> None:
    """Lock in the calling process and all that it will start.

    Args:
        policy: `read`, `write` and `devices` are lists of paths, of which missing ones are
            skipped; `port` is the one to listen on, None for Unix sockets; `calls` is the filter,
            in hexadecimal, and `calls_here` that for a process without namespaces of its own.
        apart: it has a process namespace of its own.

    Raises:
        OSError: the kernel refused; the caller must not go on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _restrict_files(policy)
    _drop_capabilities(libc)
    code = bytes.fromhex(policy["calls" if apart else "calls_here"])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up root's rights, also those that an execve(2) as root would bring back.

    Raises:
        OSError: some of them are left.
    """
    for capability in range(_MOST_CAPABILITIES):  # fails without rights, and past the last of them
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(header), ctypes.byref(none)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _restrict_files(policy: Mapping[str, Any]) -> None:
    version = landlock_version()
    every = _FIRST_ACCESS
    for since, access in ((_REFER_SINCE, _REFER), (_TRUNCATE_SINCE, _TRUNCATE)):
        every |= access if version >= since else 0
    ioctl = _IOCTL_DEV if version >= _IOCTL_SINCE else 0
    network = _BIND_TCP | _CONNECT_TCP if version >= _NETWORK_SINCE else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= SCOPE_SINCE else 0
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


def _call(number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
