"""Rules for this file: the system calls that a confined runtime may make, each with its reason.

Data alone; imports values only. What the table does not name is refused with EPERM, and what is
newer than the table is answered with ENOSYS, as a kernel without it does.
`tools/measure_system_calls.py` runs the real runtimes and reports what differs from it.

The columns: name; number on x86-64 and on 64-bit ARM ("-": not there); who makes it; what it is
answered; why. Who: L is llama.cpp, embedded; O is Ollama, thus Go; P is a Python server; all three
as measured on x86-64. Not measured: C is another form of a measured call, which other C libraries,
kernels or ARM use; N is what NVIDIA's driver is documented to need; U is usual in servers and
reaches nothing outside the process or its files. Answers: "allow"; "look" is allowed for some
arguments (`call_filter`); "done" is answered with success and not carried out; else the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["ALLOWED", "NEWEST", "SystemCall"]

# From the next number on, kernels have calls that this table was not written for.
NEWEST: Final = 453
_MEASURED: Final = frozenset("LOP")


@dataclass(frozen=True, slots=True)
class SystemCall:
    """One row of the table.

    Attributes:
        numbers: by machine, as the kernel names it; a machine that has no such call is left out.
        made_by: the letters of those that make it.
        answer: "allow", "look", "done" or the name of an error.
        reason: what it is for.
    """

    name: str
    numbers: Mapping[str, int]
    made_by: str
    answer: str
    reason: str

    @property
    def measured(self) -> bool:
        """Tell whether a runtime was seen to make it."""
        return not _MEASURED.isdisjoint(self.made_by)


_TABLE: Final = """
# Processes and threads
execve                  59 221  LOP  allow      starts a program
exit                    60  93  LP   allow      ends a thread
exit_group             231  94  OP   allow      ends a process
wait4                   61 260  P    allow      waits for a child
waitid                 247  95  O    allow      waits for a child
clone                   56 220  OP   look       makes threads and processes; no new namespaces
clone3                 435 435  LOP  ENOSYS     flags that lie in memory; libraries take clone
fork                    57   -  C    allow      makes a process, as older libraries do
vfork                   58   -  P    allow      makes a process that executes at once
getpid                  39 172  OP   allow      which process it is
getppid                110 173  U    allow      who started it
gettid                 186 178  LOP  allow      which thread it is
getpgrp                111   -  U    allow      its process group
getpgid                121 155  U    allow      a process's group
getsid                 124 156  U    allow      a process's session
setpgid                109 154  U    look       its own group; refused where that ends its tree
setsid                 112 157  U    look       as setpgid
set_tid_address        218  96  LOP  allow      the C library's start of a thread
set_robust_list        273  99  LOP  allow      locks of a thread that ends
rseq                   334 293  LOP  allow      the C library's start of a thread
arch_prctl             158   -  LOP  allow      thread storage at the start; leave to use AMX
futex                  202  98  LOP  allow      locks
futex_waitv            449 449  U    allow      locks
membarrier             324 283  U    allow      locks of some language runtimes
sched_yield             24 124  O    allow      lets others run
sched_getaffinity      204 123  LOP  allow      how many processors there are
sched_setaffinity      203 122  U    look       binds the calling thread to processors; no other's
sched_getparam         143 121  U    allow      a thread's priority, read
sched_getscheduler     145 120  U    allow      a thread's priority, read
sched_get_priority_max 146 125  U    allow      a thread's priority, read
sched_get_priority_min 147 126  U    allow      a thread's priority, read
getpriority            140 141  P    allow      its own priority
setpriority            141 140  P    look       its own priority; no other's
getcpu                 309 168  U    allow      which processor it runs on
getrusage               98 165  P    allow      what it has used
times                  100 153  U    allow      what it has used
prlimit64              302 261  LOP  look       its own limits; no other process's
getrlimit               97 163  C    allow      its own limits
setrlimit              160 164  C    allow      its own limits
prctl                  157 167  U    look       a thread's name and the like; see the options
uname                   63 160  OP   allow      which system this is
sysinfo                 99 179  LOP  allow      how much memory the machine has
getrandom              318 278  LOP  allow      random numbers
restart_syscall        219 128  C    allow      the kernel's own, after a stop
# Signals
rt_sigaction            13 134  LOP  allow      handlers
rt_sigprocmask          14 135  LOP  allow      masks
rt_sigreturn            15 139  O    allow      the end of a handler
rt_sigpending          127 136  U    allow      what has arrived
rt_sigsuspend          130 133  U    allow      waits for a signal
rt_sigtimedwait        128 137  U    allow      waits for a signal
sigaltstack            131 132  O    allow      a stack for handlers
pause                   34   -  U    allow      waits for a signal
signalfd4              289  74  U    allow      signals as a descriptor
kill                    62 129  U    look       to its own tree; refused where it could leave it
tkill                  200 130  U    look       as kill
tgkill                 234 131  O    look       as kill; Go stops its own threads so
pidfd_open             434 434  O    allow      a child as a descriptor
pidfd_send_signal      424 424  O    look       as kill; Go's way to end a child
# Memory
mmap                     9 222  LOP  allow      memory
munmap                  11 215  LOP  allow      memory
mprotect                10 226  LOP  allow      memory
mremap                  25 216  L    allow      memory
madvise                 28 233  LOP  allow      memory
brk                     12 214  LOP  allow      memory
msync                   26 227  P    allow      a mapped file
mincore                 27 232  U    allow      what of its memory is resident
mlock                  149 228  U    allow      keeps a model in memory, up to the limit
mlock2                 325 284  U    allow      keeps a model in memory, up to the limit
munlock                150 229  U    allow      the end of it
mlockall               151 230  U    allow      keeps a model in memory, up to the limit
munlockall             152 231  U    allow      the end of it
get_mempolicy          239 236  N    allow      which node memory is on; CUDA, llama.cpp's --numa
set_mempolicy          238 237  N    allow      which node memory is on; CUDA, llama.cpp's --numa
mbind                  237 235  N    allow      which node memory is on; CUDA, llama.cpp's --numa
# Time
clock_gettime          228 113  C    allow      the time
clock_getres           229 114  C    allow      the time
gettimeofday            96 169  C    allow      the time
time                   201   -  C    allow      the time
nanosleep               35 101  O    allow      sleeps
clock_nanosleep        230 115  LP   allow      sleeps
getitimer               36 102  U    allow      alarms
setitimer               38 103  U    allow      alarms
alarm                   37   -  U    allow      alarms
timerfd_create         283  85  U    allow      a timer as a descriptor; event loops
timerfd_settime        286  86  U    allow      a timer as a descriptor
timerfd_gettime        287  87  U    allow      a timer as a descriptor
timer_create           222 107  U    allow      a timer that signals the process itself
timer_settime          223 110  U    allow      a timer that signals the process itself
timer_gettime          224 108  U    allow      a timer that signals the process itself
timer_getoverrun       225 109  U    allow      a timer that signals the process itself
timer_delete           226 111  U    allow      a timer that signals the process itself
# Who it is
getuid                 102 174  C    allow      the user
geteuid                107 175  P    allow      the user
getgid                 104 176  C    allow      the group
getegid                108 177  C    allow      the group
getgroups              115 158  C    allow      the groups
getresuid              118 148  C    allow      the user
getresgid              120 150  C    allow      the group
capget                 125  90  U    allow      which rights it has: none
# Descriptors
read                     0  63  LOP  allow      descriptors
write                    1  64  LOP  allow      descriptors
readv                   19  65  C    allow      descriptors
writev                  20  66  C    allow      descriptors
pread64                 17  67  LOP  allow      descriptors
pwrite64                18  68  P    allow      descriptors
preadv                 295  69  C    allow      descriptors
pwritev                296  70  C    allow      descriptors
preadv2                327 286  C    allow      descriptors
pwritev2               328 287  C    allow      descriptors
close                    3  57  LOP  allow      descriptors
close_range            436 436  C    allow      descriptors before a program is executed
dup                     32  23  C    allow      descriptors
dup2                    33   -  C    allow      descriptors
dup3                   292  24  C    allow      descriptors
fcntl                   72  25  LOP  look       descriptors; see the commands
ioctl                   16  29  LOP  look       terminals; drivers' own where a plan asks for one
lseek                    8  62  LOP  allow      descriptors
pipe                    22   -  C    allow      pipes
pipe2                  293  59  OP   allow      pipes
poll                     7   -  LP   allow      waits for descriptors
ppoll                  271  73  C    allow      waits for descriptors
select                  23   -  C    allow      waits for descriptors
pselect6               270  72  C    allow      waits for descriptors
epoll_create           213   -  C    allow      waits for descriptors
epoll_create1          291  20  OP   allow      waits for descriptors
epoll_ctl              233  21  OP   allow      waits for descriptors
epoll_wait             232   -  P    allow      waits for descriptors
epoll_pwait            281  22  O    allow      waits for descriptors
epoll_pwait2           441 441  C    allow      waits for descriptors
eventfd                284   -  C    allow      wakes another thread
eventfd2               290  19  O    allow      wakes another thread; CUDA
sendfile                40  71  P    allow      copies between descriptors
copy_file_range        326 285  C    allow      copies between descriptors
splice                 275  76  C    EINVAL     Go and others then read and write
# Files: which of them is Landlock's or bubblewrap's matter
open                     2   -  O    allow      files
openat                 257  56  LOP  allow      files
openat2                437 437  C    ENOSYS     libraries then take openat
creat                   85   -  C    allow      files
access                  21   -  LOP  allow      files
faccessat              269  48  C    allow      files
faccessat2             439 439  C    allow      files
stat                     4   -  C    allow      files
lstat                    6   -  C    allow      files
fstat                    5  80  O    allow      files
newfstatat             262  79  LOP  allow      files
statx                  332 291  C    allow      files
statfs                 137  43  U    allow      how much room there is
fstatfs                138  44  U    allow      how much room there is
getdents                78   -  C    allow      folders
getdents64             217  61  LOP  allow      folders
getcwd                  79  17  OP   allow      folders
chdir                   80  49  P    allow      folders
fchdir                  81  50  C    allow      folders
mkdir                   83   -  P    allow      folders
mkdirat                258  34  O    allow      folders
rmdir                   84   -  P    allow      folders
readlink                89   -  LOP  allow      links
readlinkat             267  78  O    allow      links
link                    86   -  P    allow      links
linkat                 265  37  C    allow      links
symlink                 88   -  P    allow      links
symlinkat              266  36  C    allow      links
unlink                  87   -  P    allow      removes its files
unlinkat               263  35  OP   allow      removes its files
rename                  82   -  P    allow      renames its files
renameat               264  38  O    allow      renames its files
renameat2              316 276  C    allow      renames its files
truncate                76  45  P    allow      shortens its files
ftruncate               77  46  C    allow      shortens its files
fallocate              285  47  U    allow      makes room in its files
fadvise64              221 223  L    allow      how a file will be read
readahead              187 213  U    allow      how a file will be read
flock                   73  32  U    allow      locks
fsync                   74  82  P    allow      waits for the disk
fdatasync               75  83  P    allow      waits for the disk
sync_file_range        277  84  U    allow      waits for the disk
umask                   95 166  LP   allow      permissions of its new files
chmod                   90   -  L    done       not done: neither sandbox can tell whose file it is
fchmod                  91  52  C    done       as chmod
fchmodat               268  53  O    done       as chmod; Ollama gives up where it is refused
fchmodat2              452 452  C    done       as chmod
fchown                  93  55  P    EPERM      libraries go on without
utime                  132   -  C    done       as chmod
utimes                 235   -  C    done       as chmod
futimesat              261   -  C    done       as chmod
utimensat              280  88  C    done       as chmod
getxattr               191   8  C    EOPNOTSUPP as a file system without them says
lgetxattr              192   9  C    EOPNOTSUPP as a file system without them says
fgetxattr              193  10  C    EOPNOTSUPP as a file system without them says
listxattr              194  11  C    EOPNOTSUPP as a file system without them says
llistxattr             195  12  C    EOPNOTSUPP as a file system without them says
flistxattr             196  13  C    EOPNOTSUPP as a file system without them says
setxattr               188   5  C    EOPNOTSUPP as a file system without them says
lsetxattr              189   6  C    EOPNOTSUPP as a file system without them says
fsetxattr              190   7  C    EOPNOTSUPP as a file system without them says
# Sockets
socket                  41 198  LOP  look       streams of the kinds that the tier allows
socketpair              53 199  P    look       streams; a datagram could be sent to any address
bind                    49 200  LOP  allow      where it listens
listen                  50 201  LOP  allow      where it listens
accept                  43 202  C    allow      takes connections
accept4                288 242  LOP  allow      takes connections
connect                 42 203  OP   look       to itself, in a network of its own; else refused
getsockname             51 204  LOP  allow      a connection's ends
getpeername             52 205  LOP  allow      a connection's ends
getsockopt              55 209  OL   allow      a connection's options
setsockopt              54 208  OL   allow      a connection's options
shutdown                48 210  LP   allow      ends a connection
sendto                  44 206  LP   look       answers; with no address, and opening no connection
recvfrom                45 207  LP   allow      reads requests
sendmsg                 46 211  C    look       as sendto; asyncio from Python 3.12 on
recvmsg                 47 212  C    allow      reads requests
"""


def _read(table: str) -> Mapping[str, SystemCall]:
    calls = {}
    for line in table.splitlines():
        if not line or line.startswith("#"):
            continue
        name, x86_64, aarch64, made_by, answer, reason = line.split(maxsplit=5)
        numbers = {"x86_64": x86_64, "aarch64": aarch64}
        known = {machine: int(number) for machine, number in numbers.items() if number != "-"}
        calls[name] = SystemCall(name, MappingProxyType(known), made_by, answer, reason)
    return MappingProxyType(calls)


ALLOWED: Final = _read(_TABLE)
