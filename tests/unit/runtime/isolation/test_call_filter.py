"""The compiled allow-list, run by an interpreter of classic BPF as the kernel would run it."""

from __future__ import annotations

import errno
import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.runtime.isolation.call_filter import (
    ALLOW,
    KILL,
    MACHINES,
    FilterShape,
    compile_filter,
    refusal,
)
from companion_core.runtime.isolation.system_calls import ALLOWED, NEWEST

NOTHING = refusal(errno.EPERM)
DONE = refusal(0)
SMALL = FilterShape(
    unix=True, tcp=False, connect=False, devices=False, signals=False, leave_group=False
)
WIDE = FilterShape(unix=True, tcp=True, connect=True, devices=True)
SHAPES = [
    FilterShape(
        unix=unix, tcp=tcp, connect=connect, devices=devices, signals=alone, leave_group=alone
    )
    for unix, tcp, connect, devices, alone in itertools.product([True, False], repeat=5)
]
X32 = 0x40000000

# linux/audit.h: i386, ARM, RISC-V 64, PowerPC 64.
FOREIGN = [0x40000003, 0x40000028, 0xC00000F3, 0xC0000015]


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), machine: int = 0) -> int:
    """Return what the program answers; bpf(2) checks at load time what is asserted here."""
    words = [argument & (2**64 - 1) for argument in (*arguments, *[0] * 6)[:6]]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, machine, 0, *words)
    steps = list(struct.iter_unpack("HBBI", program))
    accumulator = at = 0
    while True:
        code, if_so, if_not, value = steps[at]
        at += 1
        match code:
            case 0x20:
                assert value % 4 == 0
                assert value <= len(data) - 4
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_so if accumulator == value else if_not
            case 0x35:
                at += if_so if accumulator >= value else if_not
            case 0x05:
                at += value
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case _:
                raise AssertionError(code)


class Filter:
    """One compiled filter, asked by a call's name."""

    def __init__(self, shape: FilterShape, machine: str) -> None:
        self.program = compile_filter(shape, machine)
        self.machine = machine

    def __call__(self, name: str, *arguments: int) -> int:
        number = ALLOWED[name].numbers[self.machine]
        return run(self.program, number, arguments, MACHINES[self.machine])


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(machine: str) -> Filter:
    return Filter(SMALL, machine)


@pytest.fixture
def wide(machine: str) -> Filter:
    return Filter(WIDE, machine)


@pytest.mark.parametrize("shape", [SMALL, WIDE])
def test_every_number_is_answered_as_the_table_says(shape: FilterShape, machine: str) -> None:
    program = compile_filter(shape, machine)
    by_number = {
        call.numbers[machine]: call for call in ALLOWED.values() if machine in call.numbers
    }
    for number in range(1024):
        answer = run(program, number, machine=MACHINES[machine])
        call = by_number.get(number)
        if call is None:
            assert answer == refusal(errno.ENOSYS if number > NEWEST else errno.EPERM), number
        elif call.answer == "allow":
            assert answer == ALLOW, call
        elif call.answer == "done":
            assert answer == DONE, call
        elif call.answer != "look":
            assert answer == refusal(getattr(errno, call.answer)), call


@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_is_one_that_the_kernel_takes(shape: FilterShape, machine: str) -> None:
    steps = list(struct.iter_unpack("HBBI", compile_filter(shape, machine)))
    assert len(steps) <= 4096  # BPF_MAXINSNS
    for at, (code, if_so, if_not, value) in enumerate(steps):
        farthest = {0x15: max(if_so, if_not), 0x35: max(if_so, if_not), 0x05: value}.get(code, 0)
        assert code == 0x06 or at + 1 + farthest < len(steps)
    assert steps[-1][0] == 0x06


def test_a_foreign_machine_is_killed(machine: str) -> None:
    program = compile_filter(WIDE, machine)
    for foreign in [*FOREIGN, *(set(MACHINES.values()) - {MACHINES[machine]})]:
        assert {run(program, number, machine=foreign) for number in range(512)} == {KILL}


def test_x32_is_refused() -> None:
    program = compile_filter(WIDE, "x86_64")
    numbers = [*range(X32, X32 + 600), 0xFFFFFFFF]
    assert {run(program, each, machine=MACHINES["x86_64"]) for each in numbers} == {NOTHING}


def test_a_number_far_above_the_table_is_not_there(machine: str) -> None:
    program = compile_filter(WIDE, machine)
    for number in (NEWEST + 1, 600, 2**20, X32 - 1):
        assert run(program, number, machine=MACHINES[machine]) == refusal(errno.ENOSYS)


def test_sockets_are_streams_of_the_shape(machine: str) -> None:
    families = {1: "unix", 2: "tcp", 10: "tcp"}
    for shape in SHAPES:
        ask = Filter(shape, machine)
        for family, kind, flags in itertools.product(range(48), range(11), (0, 0o2000000, 0o4000)):
            allowed = kind == 1 and family in families and getattr(shape, families[family])
            assert ask("socket", family, kind | flags, 0) == (ALLOW if allowed else NOTHING)


@pytest.mark.parametrize(("protocol", "answer"), [(0, ALLOW), (6, ALLOW)])
def test_protocols_of_a_stream(wide: Filter, protocol: int, answer: int) -> None:
    assert wide("socket", 2, 1, protocol) == answer
    for other in set(range(1, 300)) - {6}:  # MPTCP is 262, SCTP 132
        assert wide("socket", 2, 1, other) == refusal(errno.EPROTONOSUPPORT)


def test_a_pair_of_sockets_is_of_streams(small: Filter) -> None:
    assert small("socketpair", 1, 1) == ALLOW
    assert small("socketpair", 1, 1 | 0o2000000) == ALLOW
    for family, kind in [(1, 2), (1, 5), (1, 3), (2, 1), (16, 1), (30, 1)]:
        assert small("socketpair", family, kind) == NOTHING


def test_what_is_sent_has_no_address_and_opens_nothing(small: Filter) -> None:
    assert small("sendto", 3, 0x1000, 8, 0x4000, 0, 0) == ALLOW
    for address, length in [(1, 0), (2**32, 0), (2**63, 0), (0, 1), (0, 2**32), (0x7FFF1234, 16)]:
        assert small("sendto", 3, 0x1000, 8, 0, address, length) == NOTHING
    assert small("sendto", 3, 0x1000, 8, 0x20000000, 0, 0) == NOTHING
    assert small("sendto", 3, 0x1000, 8, 0x20004000, 0, 0) == NOTHING
    assert small("sendmsg", 3, 0x1000, 0x4000) == ALLOW
    assert small("sendmsg", 3, 0x1000, 0x20000000) == NOTHING


def test_connecting_is_of_the_shape(small: Filter, wide: Filter) -> None:
    assert small("connect", 3) == NOTHING
    assert wide("connect", 3) == ALLOW


@pytest.mark.parametrize("call", ["kill", "tkill", "tgkill", "pidfd_send_signal"])
def test_signals_are_of_the_shape(small: Filter, wide: Filter, call: str) -> None:
    assert small(call, 1, 9) == NOTHING
    assert wide(call, 1, 9) == ALLOW


@pytest.mark.parametrize("call", ["setsid", "setpgid"])
def test_leaving_the_group_is_of_the_shape(small: Filter, wide: Filter, call: str) -> None:
    assert small(call) == NOTHING
    assert wide(call) == ALLOW


def test_a_clone_makes_no_namespace_and_no_sibling(small: Filter) -> None:
    thread, process, spawned = 0x3D0F00, 0x01200011, 0x4111
    for flags in (thread, process, spawned, 17):
        assert small("clone", flags) == ALLOW
        for bit in (17, 25, 26, 27, 28, 29, 30, 13, 15):
            assert small("clone", flags | 1 << bit) == NOTHING
    assert small("clone3", 0x1000, 88) == refusal(errno.ENOSYS)


@pytest.mark.parametrize("command", [1024, 1025, 1026, 8, 9, 10, 11, 15, 16, 1027, 1033, 1034])
def test_commands_of_leases_owners_and_seals_are_refused(small: Filter, command: int) -> None:
    assert small("fcntl", 3, command) == NOTHING
    assert small("fcntl", 3, command + 2**32) == NOTHING


@pytest.mark.parametrize("command", [0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032])
def test_ordinary_commands_of_descriptors(small: Filter, command: int) -> None:
    assert small("fcntl", 3, command) == ALLOW
    assert small("fcntl", 3, command + 2**32) == ALLOW  # the kernel takes the low word alone


# TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSETD; FIOASYNC, FIOSETOWN, SIOCSPGRP; FS_IOC_SETFLAGS,
# SIOCGIFCONF, FIFREEZE, BLKROSET.
COMMANDS = [0x5412, 0x541C, 0x540E, 0x5423, 0x5452, 0x8901, 0x8902, 0x40086602, 0x8912]
COMMANDS += [0xC0045877, 0x125D]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_terminals_and_owners_are_refused(
    small: Filter, wide: Filter, command: int
) -> None:
    assert small("ioctl", 0, command) == NOTHING
    assert wide("ioctl", 0, command) == NOTHING


# NVIDIA's control and memory, DRM's version, KFD's version.
DRIVERS = [0xC00846D6, 0xC020462A, 0x30000001, 27, 0xC0406400, 0x80084B01]


@pytest.mark.parametrize("command", DRIVERS)
def test_drivers_commands_come_with_a_device(small: Filter, wide: Filter, command: int) -> None:
    assert small("ioctl", 3, command) == NOTHING
    assert wide("ioctl", 3, command) == ALLOW


@pytest.mark.parametrize("option", [4, 8, 22, 24, 26, 28, 35, 36, 47, 0x59616D61, 0x41555856])
def test_options_that_change_what_the_process_is(small: Filter, option: int) -> None:
    assert small("prctl", option) == NOTHING
    assert small("prctl", 15) == ALLOW


def test_limits_and_priorities_are_its_own(small: Filter) -> None:
    assert small("prlimit64", 0, 7, 0x1000) == ALLOW
    assert small("sched_setaffinity", 0) == ALLOW
    assert small("setpriority", 0, 0, 5) == ALLOW
    for other in (1, 4242, 2**31, 0xFFFFFFFF):
        assert small("prlimit64", other, 7, 0x1000) == NOTHING
        assert small("sched_setaffinity", other) == NOTHING
        assert small("setpriority", 0, other, 5) == NOTHING
    assert small("setpriority", 2, 0, 5) == NOTHING  # PRIO_USER


# What each fault of a deny-list came through, and what no runtime has any business with.
REFUSED = frozenset(
    {
        "acct",
        "add_key",
        "adjtimex",
        "bpf",
        "chroot",
        "clock_adjtime",
        "clock_settime",
        "delete_module",
        "execveat",
        "fanotify_init",
        "finit_module",
        "init_module",
        "io_setup",
        "io_submit",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "ioprio_set",
        "kcmp",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "landlock_restrict_self",
        "lookup_dcookie",
        "memfd_create",
        "memfd_secret",
        "migrate_pages",
        "mknodat",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "mq_open",
        "msgget",
        "name_to_handle_at",
        "nfsservctl",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "personality",
        "pidfd_getfd",
        "pivot_root",
        "process_madvise",
        "process_mrelease",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
        "quotactl",
        "reboot",
        "recvmmsg",
        "request_key",
        "rt_sigqueueinfo",
        "rt_tgsigqueueinfo",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
        "seccomp",
        "semget",
        "sendmmsg",
        "setdomainname",
        "setfsgid",
        "setfsuid",
        "setgid",
        "setgroups",
        "sethostname",
        "setns",
        "setregid",
        "setresgid",
        "setresuid",
        "setreuid",
        "settimeofday",
        "setuid",
        "shmat",
        "shmget",
        "swapoff",
        "swapon",
        "sync",
        "syslog",
        "tee",
        "umount2",
        "unshare",
        "userfaultfd",
        "vhangup",
        "vmsplice",
    }
)


def test_calls_that_reach_further_are_not_in_the_table() -> None:
    assert REFUSED.isdisjoint(ALLOWED)


def test_each_row_has_who_and_why() -> None:
    for name, call in ALLOWED.items():
        assert call.name == name
        assert set(call.made_by) <= set("LOPCNU")
        assert call.reason
        assert call.numbers
        assert call.answer in {"allow", "look", "done"} or hasattr(errno, call.answer)
    for machine in MACHINES:
        numbers = [call.numbers[machine] for call in ALLOWED.values() if machine in call.numbers]
        assert len(numbers) == len(set(numbers))
        assert max(numbers) <= NEWEST


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def test_numbers_are_those_of_linux_own_headers(
    machine: str, require_real: Callable[[str, bool], None]
) -> None:
    require_real("Linux' headers", HEADERS[machine].exists())
    names = dict(re.findall(r"#define (__NR\w*_\w+)\s+(\w+)", HEADERS[machine].read_text()))
    for name, call in ALLOWED.items():
        value = names.get(f"__NR_{name}", "")
        value = names.get(value, value)
        if value.isdigit():
            assert call.numbers[machine] == int(value), name
        else:  # not there, or newer than the headers
            assert call.numbers.get(machine, 452) == 452, name
