"""What a runtime that was taken over tries: each function is one attempt, run inside it.

Its source is executed in the runtime, so it imports the standard library alone. `at` says what
there is to reach. An attempt that returns got through, one that raises did not; those in
`SEEN_OUTSIDE` are judged by what is seen outside. None of them harms a machine: what would is
asked with arguments that the kernel looks at only after it has looked at who asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

at: dict[str, Any] = {}
ATTEMPTS: dict[str, Callable[[], object]] = {}
GROUPS: dict[str, str] = {}
SEEN_OUTSIDE: set[str] = set()
# What may take the keeper, and with it the rest of the attempts, is tried in a start of its own.
ALONE = ("limit_the_keeper", "stop_the_keeper", "outlive_the_keeper")

# Name, number on x86-64, number on 64-bit ARM.
_NUMBERS = """
acct 163 89; add_key 248 217; bpf 321 280; chmod 90 -; chroot 161 51; clock_settime 227 112;
clone 56 220; clone3 435 435; delete_module 176 106; execveat 322 281; exit 60 93;
fanotify_init 300 262; fchmodat 268 53; fchmodat2 452 452; finit_module 313 273; fsopen 430 430;
get_robust_list 274 100; getpid 39 172; init_module 175 105; inotify_init1 294 26;
io_uring_setup 425 425; iopl 172 -; ioprio_set 251 30; kcmp 312 272; kexec_load 246 104;
keyctl 250 219; kill 62 129; landlock_create_ruleset 444 444; lookup_dcookie 212 18;
memfd_create 319 279; migrate_pages 256 238; mknodat 259 33; modify_ldt 154 -; mount 165 40;
mount_setattr 442 442; move_mount 429 429; move_pages 279 239; mq_open 240 180; msgget 68 186;
msgrcv 70 188; name_to_handle_at 303 264; open 2 -; open_by_handle_at 304 265; open_tree 428 428;
perf_event_open 298 241; personality 135 92; pidfd_getfd 438 438; pidfd_open 434 434;
pidfd_send_signal 424 424; pivot_root 155 41; prlimit64 302 261; process_madvise 440 440;
process_vm_readv 310 270; process_vm_writev 311 271; ptrace 101 117; quotactl 179 60;
reboot 169 142; request_key 249 218; rt_sigqueueinfo 129 138; sched_setaffinity 203 122;
sched_setattr 314 274; sched_setscheduler 144 119; seccomp 317 277; semget 64 190;
sendmsg 46 211; sendto 44 206; sethostname 170 161; setns 308 268; setpriority 141 140;
setuid 105 146; shmat 30 196; shmget 29 194; swapon 167 224; syslog 103 116; tgkill 234 131;
umount2 166 39; unshare 272 97; userfaultfd 323 282; vhangup 153 58
"""
_COLUMN = 1 if platform.machine() == "x86_64" else 2
NUMBER = {
    words[0]: int(words[_COLUMN]) if words[_COLUMN] != "-" else -1
    for words in (entry.split() for entry in _NUMBERS.replace("\n", " ").split(";"))
    if words
}
SECONDS = 4
NEW_USER, NEW_NAMESPACE = 0x10000000, 0x00020000
FAST_OPEN = 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p


def attempt(group: str, *, outside: bool = False) -> Callable[[Any], Any]:
    """Register a function under its docstring."""

    def register(function: Any) -> Any:
        name = function.__doc__.strip().rstrip(".")
        ATTEMPTS[name] = function
        GROUPS[name] = group
        if outside:
            SEEN_OUTSIDE.add(name)
        return function

    return register


def call(name: str, *arguments: Any) -> int:
    """Make a system call."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(libc.syscall(ctypes.c_long(NUMBER[name]), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def permitted(name: str, *arguments: Any) -> None:
    """Make a call that fails in any case: it got through if it was not refused."""
    try:
        call(name, *arguments)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
            raise


def victim(name: str) -> int:
    """Return the process that this attempt is about."""
    return int(at["victims"][name])


def require(condition: object) -> None:
    """Fail where what was tried had no effect."""
    if not condition:
        raise OSError(0, "no effect")


# Files ------------------------------------------------------------------------------------------


@attempt("files")
def read_a_file() -> None:
    """Reads a file of the person's."""
    with open(at["diary"]) as file:
        require(file.read() == "private")


@attempt("files")
def list_a_folder() -> None:
    """Lists a folder of the person's."""
    os.listdir(os.path.dirname(at["diary"]))


@attempt("files", outside=True)
def write_a_file() -> None:
    """Makes a file in a folder of the person's."""
    open(at["diary"] + ".new", "w").close()


@attempt("files", outside=True)
def shorten_a_file() -> None:
    """Empties a file of the person's."""
    os.truncate(at["victim file"], 0)


@attempt("files", outside=True)
def change_a_mode() -> None:
    """Opens a file of the person's to everybody (chmod)."""
    os.chmod(at["mode"], 0o666)


@attempt("files", outside=True)
def change_a_mode_by_its_second_name() -> None:
    """Opens a file of the person's to everybody (fchmodat2)."""
    path = ctypes.c_char_p(os.fsencode(at["mode 2"]))
    call("fchmodat2", -100, path, 0o666, 0)


@attempt("files", outside=True)
def change_the_state_folder() -> None:
    """Opens the companion's state folder to everybody."""
    os.chmod(at["state"], 0o777)


@attempt("files", outside=True)
def change_times() -> None:
    """Changes when a file of the person's was written."""
    os.utime(at["times"], (1, 1))


@attempt("files", outside=True)
def change_owner() -> None:
    """Gives a file of the person's away."""
    os.chown(at["owner"], -1, at["other group"])


@attempt("files", outside=True)
def set_attribute() -> None:
    """Writes an extended attribute on a file of the person's."""
    os.setxattr(at["attribute"], "user.x", b"1")


@attempt("files")
def link_a_file() -> None:
    """Links a file of the person's into its own folder."""
    os.link(at["diary"], "linked")


@attempt("files", outside=True)
def rename_a_file() -> None:
    """Moves a file of the person's into its own folder."""
    os.rename(at["moved"], "moved")


@attempt("files")
def write_the_model() -> None:
    """Writes the model by its path."""
    os.close(os.open(at["model"], os.O_RDWR))


@attempt("files")
def write_the_model_by_descriptor() -> None:
    """Opens the model for writing through its own descriptor."""
    descriptor = os.open(at["given model"], os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))


@attempt("files", outside=True)
def change_the_models_mode() -> None:
    """Changes the model's mode through its descriptor (fchmod)."""
    os.fchmod(os.open(at["given model"], os.O_RDONLY), 0o666)


@attempt("files")
def lease_the_model() -> None:
    """Takes a lease on the model."""
    fcntl.fcntl(os.open(at["given model"], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)


@attempt("files")
def notice_a_folder() -> None:
    """Has itself told what happens in a folder (F_NOTIFY)."""
    fcntl.fcntl(os.open(os.path.dirname(at["diary"]), os.O_RDONLY), fcntl.F_NOTIFY, 1)


@attempt("files")
def open_by_handle() -> None:
    """Opens a file of the person's by its handle, past every path."""

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_char * 128))

    handle, mount = Handle(128), ctypes.c_int()
    path = ctypes.c_char_p(os.fsencode(at["diary"]))
    call("name_to_handle_at", -100, path, ctypes.byref(handle), ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY)
    call("open_by_handle_at", root, ctypes.byref(handle), os.O_RDONLY)


@attempt("files")
def root_of_another() -> None:
    """Reaches files through the companion's entry in /proc."""
    os.listdir(f"/proc/{at['companion']}/root/")


@attempt("files")
def raw_device() -> None:
    """Makes a device file and reads the machine's memory."""
    call("mknodat", -100, ctypes.c_char_p(b"memory"), stat.S_IFCHR | 0o600, os.makedev(1, 1))
    os.close(os.open("memory", os.O_RDONLY))


@attempt("files")
def kernel_log() -> None:
    """Reads the kernel's log."""
    call("syslog", 3, ctypes.create_string_buffer(64), 64)


@attempt("files")
def kernel_settings() -> None:
    """Opens a setting of the kernel for writing (core_pattern)."""
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attempt("files")
def magic_keys() -> None:
    """Opens the machine's emergency keys (sysrq-trigger)."""
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))


@attempt("files")
def new_device() -> None:
    """Makes a file in /dev, which counts as memory."""
    open("/dev/companion-attempt", "w").close()
    os.unlink("/dev/companion-attempt")


def _room(folder: str) -> None:
    probe = os.path.join(folder, f"companion-attempt-{os.getpid()}")
    open(probe, "w").close()
    os.unlink(probe)
    status = os.statvfs(folder)
    require(status.f_blocks * status.f_frsize > 128 * 2**20)


@attempt("files")
def room_in_tmp() -> None:
    """Has more than 128 MiB of /tmp to fill."""
    _room("/tmp")


@attempt("files")
def room_in_shared_memory() -> None:
    """Has more than 128 MiB of /dev/shm to fill."""
    _room("/dev/shm")


@attempt("files")
def shared_memory_file() -> None:
    """Reads another program's shared memory (/dev/shm)."""
    os.close(os.open(at["shared memory"], os.O_RDONLY))


@attempt("files")
def memory_file() -> None:
    """Keeps data in a file that is nowhere (memfd_create)."""
    call("memfd_create", ctypes.c_char_p(b"x"), 0)


@attempt("files")
def new_root() -> None:
    """Changes its root folder."""
    call("chroot", ctypes.c_char_p(b"/"))


@attempt("files")
def new_mount() -> None:
    """Mounts a file system over a folder of the person's."""
    path = ctypes.c_char_p(os.fsencode(os.path.dirname(at["diary"])))
    call("unshare", NEW_NAMESPACE)
    call("mount", ctypes.c_char_p(b"x"), path, ctypes.c_char_p(b"tmpfs"), 0, None)


@attempt("files")
def mount_by_descriptor() -> None:
    """Takes a copy of a mount (open_tree)."""
    path = ctypes.c_char_p(os.fsencode(os.path.dirname(at["diary"])))
    os.close(call("open_tree", -100, path, 1))


@attempt("files")
def watch_everything() -> None:
    """Watches every file that is opened (fanotify)."""
    os.close(call("fanotify_init", 0, 0))


# Other processes --------------------------------------------------------------------------------


@attempt("processes")
def ask_the_companion() -> None:
    """Sends the companion a signal."""
    call("kill", at["companion"], 0)


@attempt("processes", outside=True)
def kill_by_kill() -> None:
    """Ends another program (kill)."""
    call("kill", victim("kill_by_kill"), signal.SIGKILL)


@attempt("processes", outside=True)
def kill_by_thread() -> None:
    """Ends another program (tgkill)."""
    call("tgkill", victim("kill_by_thread"), victim("kill_by_thread"), signal.SIGKILL)


@attempt("processes", outside=True)
def kill_by_descriptor() -> None:
    """Ends another program (pidfd_send_signal)."""
    descriptor = call("pidfd_open", victim("kill_by_descriptor"), 0)
    call("pidfd_send_signal", descriptor, signal.SIGKILL, None, 0)


@attempt("processes", outside=True)
def kill_by_queue() -> None:
    """Ends another program (rt_sigqueueinfo)."""
    information = ctypes.create_string_buffer(struct.pack("iii", signal.SIGTERM, 0, -1), 128)
    number = victim("kill_by_queue")
    call("rt_sigqueueinfo", number, signal.SIGTERM, ctypes.byref(information))


@attempt("processes", outside=True)
def kill_by_owner() -> None:
    """Ends another program by a descriptor's signal (F_SETOWN, F_SETSIG)."""
    receiving, sending = os.pipe()
    fcntl.fcntl(receiving, fcntl.F_SETOWN, victim("kill_by_owner"))
    fcntl.fcntl(receiving, 10, signal.SIGUSR1)  # F_SETSIG
    fcntl.fcntl(receiving, fcntl.F_SETFL, os.O_ASYNC)
    os.write(sending, b"x")
    time.sleep(0.1)


@attempt("processes", outside=True)
def kill_by_ioctl() -> None:
    """Ends another program by a descriptor's signal (FIOSETOWN, FIOASYNC)."""
    near, far = socket.socketpair()
    number = struct.pack("i", victim("kill_by_ioctl"))
    fcntl.ioctl(near, 0x8901, number)  # FIOSETOWN
    fcntl.ioctl(near, 0x5452, struct.pack("i", 1))  # FIOASYNC
    far.send(b"x")
    time.sleep(0.1)


@attempt("processes", outside=True)
def kill_by_limit() -> None:
    """Ends another program by a limit (prlimit, RLIMIT_CPU)."""
    call("prlimit64", victim("kill_by_limit"), 0, ctypes.byref((ctypes.c_ulong * 2)(0, 0)), None)


@attempt("processes", outside=True)
def limit_the_keeper() -> None:
    """Takes the keeper's descriptors away (prlimit, RLIMIT_NOFILE)."""
    call("prlimit64", at["keeper"], 7, ctypes.byref((ctypes.c_ulong * 2)(0, 0)), None)


@attempt("processes", outside=True)
def stop_the_keeper() -> None:
    """Stops the keeper (SIGSTOP)."""
    call("kill", at["keeper"], signal.SIGSTOP)


@attempt("processes")
def trace() -> None:
    """Traces another program (ptrace)."""
    call("ptrace", 0x4206, victim("trace"), 0, 0)


@attempt("processes")
def companions_memory() -> None:
    """Reads the companion's memory (process_vm_readv)."""
    buffer = ctypes.create_string_buffer(8)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    there = (ctypes.c_size_t * 2)(at["address"], 8)
    call("process_vm_readv", at["companion"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


@attempt("processes", outside=True)
def write_companions_memory() -> None:
    """Writes the companion's memory (process_vm_writev)."""
    buffer = ctypes.create_string_buffer(b"STOLEN")
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 6)
    there = (ctypes.c_size_t * 2)(at["address 2"], 6)
    call("process_vm_writev", at["companion"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


@attempt("processes")
def companions_memory_file() -> None:
    """Opens the companion's memory (/proc/PID/mem)."""
    os.close(os.open(f"/proc/{at['companion']}/mem", os.O_RDONLY))


@attempt("processes")
def companions_environment() -> None:
    """Reads the companion's environment."""
    with open(f"/proc/{at['companion']}/environ", "rb") as file:
        file.read()


@attempt("processes")
def companions_descriptors() -> None:
    """Lists the companion's descriptors."""
    os.listdir(f"/proc/{at['companion']}/fd")


@attempt("processes")
def take_a_descriptor() -> None:
    """Takes a descriptor of the companion's (pidfd_getfd)."""
    call("pidfd_getfd", call("pidfd_open", at["companion"], 0), at["descriptor"], 0)


@attempt("processes", outside=True)
def bind_to_a_processor() -> None:
    """Binds another program to one processor."""
    mask = ctypes.c_ulong(1)
    call("sched_setaffinity", victim("bind_to_a_processor"), 8, ctypes.byref(mask))


@attempt("processes", outside=True)
def slow_down() -> None:
    """Gives another program the lowest priority."""
    call("setpriority", 0, victim("slow_down"), 19)


@attempt("processes", outside=True)
def put_to_idle() -> None:
    """Lets another program run only when nobody else does (SCHED_IDLE)."""
    call("sched_setscheduler", victim("put_to_idle"), 5, ctypes.byref(ctypes.c_int(0)))


@attempt("processes")
def slow_disk() -> None:
    """Takes another program's turn at the disk away (ioprio_set)."""
    call("ioprio_set", 1, victim("slow_disk"), 3 << 13)


@attempt("processes")
def compare() -> None:
    """Asks what another program shares with it (kcmp)."""
    call("kcmp", victim("compare"), victim("compare"), 2, 0, 0)


@attempt("processes")
def sample() -> None:
    """Samples another program (perf_event_open)."""
    event = ctypes.create_string_buffer(struct.pack("IIQQQQQ", 1, 112, 1, 0, 0, 0, 0b1100010), 112)
    call("perf_event_open", ctypes.byref(event), victim("sample"), -1, -1, 0)


@attempt("processes")
def lock_list() -> None:
    """Reads where another program keeps its locks (get_robust_list)."""
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    call("get_robust_list", victim("lock_list"), ctypes.byref(head), ctypes.byref(size))


@attempt("processes")
def move_memory() -> None:
    """Moves another program's memory (migrate_pages)."""
    nodes = ctypes.c_ulong(1)
    arguments = (victim("move_memory"), 64, ctypes.byref(nodes), ctypes.byref(nodes))
    call("migrate_pages", *arguments)


@attempt("processes", outside=True)
def offer_to_the_killer() -> None:
    """Makes another program the first that memory is taken from (oom_score_adj)."""
    with open(f"/proc/{victim('offer_to_the_killer')}/oom_score_adj", "w") as file:
        file.write("999")


# Sockets ----------------------------------------------------------------------------------------


def connect(family: int, address: Any, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> None:
    """Connect to something."""
    with socket.socket(family, kind, protocol) as reaching:
        reaching.settimeout(SECONDS / 2)
        reaching.connect(address)


@attempt("sockets")
def bus_path() -> None:
    """Connects to another program's Unix socket (the session bus)."""
    connect(socket.AF_UNIX, at["bus"])


@attempt("sockets")
def bus_sequence() -> None:
    """Connects to another program's Unix socket of packets."""
    connect(socket.AF_UNIX, at["packets"], socket.SOCK_SEQPACKET)


@attempt("sockets")
def bus_abstract() -> None:
    """Connects to another program's abstract Unix socket."""
    connect(socket.AF_UNIX, "\0" + at["abstract"])


@attempt("sockets")
def bus_elsewhere() -> None:
    """Connects to another program's Unix socket by way of /proc."""
    connect(socket.AF_UNIX, f"/proc/{at['companion']}/root{at['bus']}")


@attempt("sockets", outside=True)
def datagram() -> None:
    """Sends a datagram to another program's Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.sendto(b"datagram", at["datagrams"])


@attempt("sockets", outside=True)
def pair_and_address() -> None:
    """Sends a datagram from a pair of sockets (socketpair, sendto)."""
    near, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.sendto(b"pair_and_address", at["datagrams"])


@attempt("sockets", outside=True)
def pair_and_message() -> None:
    """Hands a descriptor to another program (socketpair, sendmsg, SCM_RIGHTS)."""
    near, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", near.fileno()))
    near.sendmsg([b"pair_and_message"], [rights], 0, at["datagrams"])


@attempt("sockets", outside=True)
def pair_by_connect() -> None:
    """Connects one of a pair of datagram sockets to another program."""
    near, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.connect(at["datagrams"])
    near.send(b"pair_by_connect")


@attempt("sockets")
def loopback() -> None:
    """Connects to another program's TCP port."""
    connect(socket.AF_INET, ("127.0.0.1", at["tcp"]))


@attempt("sockets", outside=True)
def fast_open() -> None:
    """Connects and sends in one (sendto, MSG_FASTOPEN)."""
    with socket.socket() as reaching:
        reaching.sendto(b"fast_open", FAST_OPEN, ("127.0.0.1", at["fast"]))


@attempt("sockets", outside=True)
def fast_open_message() -> None:
    """Connects and sends in one (sendmsg, MSG_FASTOPEN)."""
    with socket.socket() as reaching:
        reaching.sendmsg([b"fast_open_message"], [], FAST_OPEN, ("127.0.0.1", at["fast"]))


@attempt("sockets")
def fast_open_connect() -> None:
    """Connects later than it says (TCP_FASTOPEN_CONNECT)."""
    with socket.socket() as reaching:
        reaching.settimeout(SECONDS / 2)
        reaching.setsockopt(socket.IPPROTO_TCP, 30, 1)
        reaching.connect(("127.0.0.1", at["tcp"]))
        reaching.send(b"x")
        reaching.getpeername()


@attempt("sockets")
def several_paths() -> None:
    """Connects with another protocol of TCP (MPTCP)."""
    connect(socket.AF_INET, ("127.0.0.1", at["tcp"]), protocol=262)


@attempt("sockets", outside=True)
def udp() -> None:
    """Sends a UDP packet."""
    with socket.socket(type=socket.SOCK_DGRAM) as sending:
        sending.sendto(b"udp", ("127.0.0.1", at["udp"]))


@attempt("sockets")
def raw_packets() -> None:
    """Sees every packet of the machine (AF_PACKET)."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attempt("sockets")
def raw_internet() -> None:
    """Makes packets of its own (SOCK_RAW)."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()


@attempt("sockets")
def network_settings() -> None:
    """Asks the kernel about the machine's network (AF_NETLINK)."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


@attempt("sockets")
def machine_beside() -> None:
    """Makes a socket to the machine's host (AF_VSOCK)."""
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


@attempt("sockets")
def kernel_ciphers() -> None:
    """Has the kernel compute for it (AF_ALG)."""
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()


@attempt("sockets", outside=True)
def other_port() -> None:
    """Listens on a TCP port that is not its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", at["free port"]))
    listener.listen()
    time.sleep(0.2)


@attempt("sockets")
def ring() -> None:
    """Works past the filter (io_uring)."""
    parameters = ctypes.create_string_buffer(120)
    os.close(call("io_uring_setup", 4, ctypes.byref(parameters)))


# Keys and shared memory -------------------------------------------------------------------------


@attempt("keys")
def session_key() -> None:
    """Reads a secret in the person's session keyring."""
    kind, name = ctypes.c_char_p(b"user"), ctypes.c_char_p(at["key"].encode())
    key = call("keyctl", 10, -3, kind, name, 0)  # KEYCTL_SEARCH
    buffer = ctypes.create_string_buffer(16)
    call("keyctl", 11, key, buffer, 16)  # KEYCTL_READ
    require(buffer.value == b"secret")


@attempt("keys")
def session_key_by_request() -> None:
    """Finds a secret in the person's session keyring (request_key)."""
    kind, name = ctypes.c_char_p(b"user"), ctypes.c_char_p(at["key"].encode())
    call("request_key", kind, name, None, 0)


@attempt("keys", outside=True)
def new_key() -> None:
    """Leaves a key behind in the person's session keyring (add_key)."""
    kind, name = ctypes.c_char_p(b"user"), ctypes.c_char_p(b"companion-attempt")
    call("add_key", kind, name, ctypes.c_char_p(b"x"), 1, -3)


@attempt("keys")
def shared_segment() -> None:
    """Attaches another program's shared memory (shmget)."""
    call("shmget", at["segment"], 0, 0o600)


@attempt("keys")
def shared_locks() -> None:
    """Finds another program's semaphores (semget)."""
    call("semget", at["segment"], 0, 0o600)


@attempt("keys")
def shared_messages() -> None:
    """Reads another program's messages (msgget)."""
    call("msgget", at["segment"], 0o600)


@attempt("keys")
def message_queue() -> None:
    """Opens another program's message queue (mq_open)."""
    name = ctypes.c_char_p(at["queue"].encode())
    os.close(call("mq_open", name, os.O_RDONLY, 0, None))


# The kernel -------------------------------------------------------------------------------------


@attempt("kernel")
def user_namespace() -> None:
    """Makes a user namespace (clone)."""
    child = call("clone", NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)


@attempt("kernel")
def user_namespace_of_three() -> None:
    """Makes a user namespace (clone3)."""
    arguments = (ctypes.c_uint64 * 11)(NEW_USER, 0, 0, 0, signal.SIGCHLD)
    child = call("clone3", ctypes.byref(arguments), 88)
    if child == 0:
        os._exit(0)


@attempt("kernel")
def user_namespace_later() -> None:
    """Makes a user namespace (unshare)."""
    call("unshare", NEW_USER)


@attempt("kernel")
def enter_a_namespace() -> None:
    """Enters a namespace (setns)."""
    permitted("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)


@attempt("kernel")
def kernel_programs() -> None:
    """Loads a program into the kernel (bpf)."""
    attributes = ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 4, 1, 0), 128)
    os.close(call("bpf", 0, ctypes.byref(attributes), 128))


@attempt("kernel")
def faults() -> None:
    """Handles its own page faults (userfaultfd)."""
    os.close(call("userfaultfd", 1))


@attempt("kernel")
def personality() -> None:
    """Turns its protection by random addresses off (personality)."""
    call("personality", 0x0040000)


@attempt("kernel")
def foreign_calls() -> None:
    """Makes a call of another machine's (int 0x80), whose numbers mean others."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "there is none")
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # getpid of i386
    place = libc.mmap(None, 4096, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(place, code, len(code))
    require(ctypes.CFUNCTYPE(ctypes.c_int)(place)() == os.getpid())


@attempt("kernel")
def second_numbers() -> None:
    """Makes a call under its second number (x32)."""
    number = NUMBER["getpid"] | 0x40000000
    require(libc.syscall(ctypes.c_long(number)) == os.getpid())


@attempt("kernel")
def ports() -> None:
    """Speaks to the machine's ports (iopl)."""
    call("iopl", 3)


@attempt("kernel")
def segments() -> None:
    """Changes its segments (modify_ldt)."""
    call("modify_ldt", 0, ctypes.create_string_buffer(64), 64)


@attempt("kernel")
def load_a_module() -> None:
    """Loads a module into the kernel."""
    permitted("init_module", None, 0, ctypes.c_char_p(b""))


@attempt("kernel")
def next_kernel() -> None:
    """Says which kernel runs next (kexec_load)."""
    permitted("kexec_load", 0, 0, None, 0)


@attempt("kernel")
def restart_the_machine() -> None:
    """Restarts the machine."""
    permitted("reboot", 0, 0, 0, None)


@attempt("kernel")
def swap() -> None:
    """Adds swap."""
    permitted("swapon", ctypes.c_char_p(b"/nowhere"), 0)


@attempt("kernel")
def accounting() -> None:
    """Changes what is recorded of processes (acct)."""
    permitted("acct", ctypes.c_char_p(b"/nowhere"))


@attempt("kernel")
def machines_name() -> None:
    """Renames the machine."""
    name = os.uname().nodename.encode()
    call("sethostname", ctypes.c_char_p(name), len(name))


@attempt("kernel")
def another_user() -> None:
    """Becomes another user."""
    require(os.getuid() != at["other user"])
    call("setuid", at["other user"])


@attempt("kernel")
def run_from_memory() -> None:
    """Executes a program that is in no file (memfd_create, execveat)."""
    descriptor = call("memfd_create", ctypes.c_char_p(b"x"), 0)
    with open("/bin/true", "rb") as program:
        os.write(descriptor, program.read())
    words = (ctypes.c_char_p * 2)(b"true", None)
    call("execveat", descriptor, ctypes.c_char_p(b""), words, words, 0x1000)


@attempt("kernel")
def own_filter() -> None:
    """Adds a filter by which it answers calls itself (seccomp)."""
    permitted("seccomp", 1, 8, None)


@attempt("kernel")
def type_for_another() -> None:
    """Types into a terminal (TIOCSTI)."""
    _, slave = os.openpty()
    os.setsid()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    fcntl.ioctl(slave, 0x5412, b"x")


# Its end ----------------------------------------------------------------------------------------


@attempt("end", outside=True)
def outlive() -> None:
    """Leaves a process behind, its own session and an empty environment."""
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            os.setsid()
        if os.fork():
            os._exit(0)
        os.execve("/bin/sleep", ["sleep", at["outlive"]], {})
    os.wait()


@attempt("end", outside=True)
def outlive_the_keeper() -> None:
    """Leaves a process behind and ends the keeper."""
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            os.setsid()
        if os.fork():
            os._exit(0)
        os.execve("/bin/sleep", ["sleep", at["outlive the keeper"]], {})
    os.wait()
    call("kill", at["keeper"], signal.SIGKILL)


def run_all(targets: str, only: str = "") -> None:
    """Make each attempt in a process of its own, and write down how each ended."""
    at.update(json.loads(targets))
    told = os.path.join(at["folder"], "keeper")
    while not os.path.exists(told):
        time.sleep(0.005)
    with open(told) as file:
        at["keeper"] = int(file.read())
    results = {}
    for name, tried in ATTEMPTS.items():
        if (tried.__name__ != only) if only else (tried.__name__ in ALONE):
            continue
        results[name] = run_one(tried)
    path = os.path.join(at["folder"], "attempts.json")
    with open(path + ".new", "w") as file:
        json.dump(results, file)
    os.rename(path + ".new", path)


def run_one(tried: Callable[[], object]) -> str:
    """Make one attempt in a process of its own, and return how it ended."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            tried()
            said = "through"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:
            said = type(error).__name__
        os.write(sending, said.encode())
        os._exit(0)
    os.close(sending)
    said = os.read(receiving, 64).decode()
    os.close(receiving)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if not said:  # it was ended, or became another program
        said = "through" if code == 0 else signal.Signals(-code).name if code < 0 else str(code)
    return said
