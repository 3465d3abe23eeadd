"""Rules for this file: compile the allow-list of system calls into a filter that the kernel runs.

Pure: a shape in, a program of classic BPF out (seccomp(2), bpf(4)); no I/O, no clock. What the
filter looks at are numbers alone. What a call's pointer leads to cannot be judged, so a call
whose danger lies there is refused or answered as if it were not there.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from companion_core.runtime.isolation.system_calls import ALLOWED, NEWEST

__all__ = ["ALLOW", "KILL", "MACHINES", "FilterShape", "compile_filter", "refusal"]

# Machines by the kernel's name, and what seccomp calls each (linux/audit.h).
MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
_ERROR: Final = 0x00050000
# x86-64 has the same calls once more, under numbers with this bit.
_X32_BIT: Final = 0x40000000

# Classic BPF: load a word; jump if equal, if at least, always; and with a mask; return.
_LOAD, _EQUAL, _AT_LEAST, _JUMP, _AND, _RETURN = 0x20, 0x15, 0x35, 0x05, 0x54, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
_WORD: Final = 0xFFFFFFFF
_FARTHEST: Final = 255  # a condition jumps over so many steps at most

_Step = tuple[int, int, int, int]

# Arguments, by their names in Linux' headers.
_AF_UNIX, _AF_INET, _AF_INET6, _SOCK_STREAM, _SOCK_KIND, _IPPROTO_TCP = 1, 2, 10, 1, 0xF, 6
_MSG_FASTOPEN: Final = 0x20000000
# CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET; CLONE_PTRACE and CLONE_PARENT.
_NAMESPACES: Final = 0x7E020000 | 0x00002000 | 0x00008000
_FCNTL: Final = (
    *(0, 1030),  # F_DUPFD, F_DUPFD_CLOEXEC
    *(1, 2, 3, 4),  # F_GETFD, F_SETFD, F_GETFL, F_SETFL
    *(5, 6, 7, 36, 37, 38),  # F_GETLK, F_SETLK, F_SETLKW, and the same of an open file
    *(1031, 1032),  # F_SETPIPE_SZ, F_GETPIPE_SZ
)
_IOCTL: Final = (
    *(0x5401, 0x802C542A, 0x5413),  # TCGETS, TCGETS2, TIOCGWINSZ
    *(0x541B, 0x5421, 0x5450, 0x5451),  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    0x40049409,  # FICLONE, a copy that shares its blocks
)
# What the drivers' own begin with: NVIDIA, DRM, AMD's KFD; and NVIDIA's unified memory, which has
# bare numbers and two more.
_DRIVER_KINDS: Final = tuple((0xFF00, ord(kind) << 8) for kind in "FdK")
_UNIFIED_MEMORY: Final = ((0xFFFFFF00, 0), (_WORD, 0x30000001), (_WORD, 0x30000002))
_PRCTL: Final = (
    *(1, 2, 3),  # PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE
    *(15, 16),  # PR_SET_NAME, PR_GET_NAME
    *(21, 23, 38, 39),  # PR_GET_SECCOMP, PR_CAPBSET_READ, PR_SET_ and PR_GET_NO_NEW_PRIVS
    *(29, 30, 41, 42),  # PR_SET_ and PR_GET_TIMERSLACK, PR_SET_ and PR_GET_THP_DISABLE
    *(56, 0x53564D41),  # PR_GET_TAGGED_ADDR_CTRL, PR_SET_VMA
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterShape:
    """What differs between tiers and plans.

    Attributes:
        unix: it may make Unix stream sockets.
        tcp: it may make TCP sockets.
        connect: it may connect; only where nothing but its own tree can be reached.
        devices: it may give accelerators their drivers' own commands.
        signals: it may send signals; only where something else keeps them inside its tree.
        leave_group: it may make sessions and groups; not where its group is what ends it.
    """

    unix: bool
    tcp: bool
    connect: bool
    devices: bool
    signals: bool = True
    leave_group: bool = True


@dataclass(frozen=True, slots=True)
class _Check:
    """One argument: any of `accepted`, pairs of a mask and what it must leave, or `otherwise`.

    Attributes:
        wide: all 64 bits of it must be zero, in place of `accepted`.
    """

    argument: int
    accepted: tuple[tuple[int, int], ...] = ()
    otherwise: int = errno.EPERM
    wide: bool = False


def refusal(error: int) -> int:
    """Return what the kernel calls an answer with this error; 0 is success, not carried out."""
    return _ERROR | error


def compile_filter(shape: FilterShape, machine: str) -> bytes:
    """Return the program as the kernel and bubblewrap's `--seccomp` take it.

    Args:
        shape: of the tier and the plan.
        machine: as `platform.machine()` has it, one of `MACHINES`.
    """
    return b"".join(struct.pack("HBBI", *step) for step in _program(shape, machine))


@functools.lru_cache(maxsize=8)
def _program(shape: FilterShape, machine: str) -> tuple[_Step, ...]:
    leaves: dict[int, tuple[_Step, ...]] = {}
    checks = _checks(shape)
    for call in ALLOWED.values():
        number = call.numbers.get(machine)
        if number is not None:
            leaves[number] = _leaf(call.answer, checks.get(call.name))
    steps: list[_Step] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32_BIT), _refuse(errno.EPERM)]
    return (*steps, *_tree(_ranges(leaves)))


def _refuse(error: int) -> _Step:
    return (_RETURN, 0, 0, refusal(error))


def _leaf(answer: str, checks: Sequence[_Check] | None) -> tuple[_Step, ...]:
    """Return what is done with one call, once its number is known."""
    if answer == "done":
        return (_refuse(0),)
    if answer == "look":
        if checks is None:
            return (_refuse(errno.EPERM),)
        return (*(step for check in checks for step in _look(check)), (_RETURN, 0, 0, ALLOW))
    if answer == "allow":
        return ((_RETURN, 0, 0, ALLOW),)
    return (_refuse(getattr(errno, answer)),)


def _look(check: _Check) -> Iterable[_Step]:
    """Yield the steps that go on past the last of them only if the argument is accepted."""
    low = _ARGUMENTS + 8 * check.argument  # both machines keep the low word first
    refused = _refuse(check.otherwise)
    if check.wide:
        for place in (low, low + 4):
            yield from ((_LOAD, 0, 0, place), (_EQUAL, 1, 0, 0), refused)
        return
    steps: list[list[_Step]] = []
    loaded = False
    for mask, value in check.accepted:
        one: list[_Step] = [] if loaded else [(_LOAD, 0, 0, low)]
        if mask != _WORD:
            one.append((_AND, 0, 0, mask))
        loaded = mask == _WORD
        one.append((_EQUAL, 0, 0, value))
        steps.append(one)
    flat = [step for one in steps for step in one]
    for index, (code, _, _, value) in enumerate(flat):
        # A match jumps over what is left, and over the refusal.
        yield (code, len(flat) - index if code == _EQUAL else 0, 0, value)
    yield refused


def _ranges(leaves: Mapping[int, tuple[_Step, ...]]) -> list[tuple[int, tuple[_Step, ...]]]:
    """Return from which number on each leaf holds, in order; equal neighbours are one."""
    found: list[tuple[int, tuple[_Step, ...]]] = []
    unknown = (_refuse(errno.EPERM),)
    for number in range(max(NEWEST, *leaves) + 1):
        leaf = leaves.get(number, unknown)
        if not found or found[-1][1] != leaf:
            found.append((number, leaf))
    found.append((NEWEST + 1, (_refuse(errno.ENOSYS),)))
    return found


def _tree(ranges: Sequence[tuple[int, tuple[_Step, ...]]]) -> tuple[_Step, ...]:
    """Return steps that find a number's range by halves, and then do what its leaf says."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    pivot = ranges[middle][0]
    if len(below) <= _FARTHEST:
        return ((_AT_LEAST, len(below), 0, pivot), *below, *above)
    return ((_AT_LEAST, 0, 1, pivot), (_JUMP, 0, 0, len(below)), *below, *above)


def _one_of(argument: int, values: Iterable[int], otherwise: int = errno.EPERM) -> _Check:
    return _Check(argument, tuple((_WORD, value) for value in values), otherwise)


def _without(argument: int, bits: int) -> _Check:
    return _Check(argument, ((bits, 0),))


def _checks(shape: FilterShape) -> Mapping[str, Sequence[_Check]]:
    """Return the conditions of each call that is looked at; one that is left out is refused."""
    families = (_AF_UNIX,) * shape.unix + (_AF_INET, _AF_INET6) * shape.tcp
    stream = _Check(1, ((_SOCK_KIND, _SOCK_STREAM),))
    ioctl = tuple((_WORD, command) for command in _IOCTL)
    if shape.devices:
        ioctl += _DRIVER_KINDS + _UNIFIED_MEMORY
    checks: dict[str, Sequence[_Check]] = {
        "clone": (_without(0, _NAMESPACES),),
        "fcntl": (_one_of(1, _FCNTL),),
        "ioctl": (_Check(1, ioctl),),
        "prctl": (_one_of(0, _PRCTL),),
        "prlimit64": (_one_of(0, (0,)),),
        "sched_setaffinity": (_one_of(0, (0,)),),
        "setpriority": (_one_of(0, (0,)), _one_of(1, (0,))),
        # Another protocol of these families has rules of its own; Go asks for MPTCP first.
        "socket": (
            _one_of(0, families),
            stream,
            _one_of(2, (0, _IPPROTO_TCP), errno.EPROTONOSUPPORT),
        ),
        "socketpair": (_one_of(0, (_AF_UNIX,)), stream),
        "sendto": (_Check(4, wide=True), _Check(5, wide=True), _without(3, _MSG_FASTOPEN)),
        # Its address lies in memory; a stream that is connected takes none, another none either.
        "sendmsg": (_without(2, _MSG_FASTOPEN),),
    }
    if shape.connect:
        checks["connect"] = ()
    if shape.signals:
        checks |= dict.fromkeys(("kill", "tkill", "tgkill", "pidfd_send_signal"), ())
    if shape.leave_group:
        checks |= dict.fromkeys(("setsid", "setpgid"), ())
    return checks
