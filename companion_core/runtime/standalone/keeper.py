"""The keeper: stands between the companion and the runtime, and outlives neither (I-08).

It runs as a program of its own, `python -I -S keeper.py DESCRIPTOR`, and imports only the standard
library. The descriptor is one end of a pair of sockets; the companion alone has the other end. The
start arrives on it as one line of JSON (the companion's side is `process/keeper_protocol.py`),
reports leave on it, and its end of file means that the companion is gone, whatever killed it. Then,
or when the runtime ends, the keeper kills everything below itself and ends too.

On Linux the runtime gets namespaces of its own where the system grants them: then nothing in them
can reach the keeper, and all of them end with their first process, which ends with the keeper. Else
the keeper is the subreaper of the tree: a process whose parent dies becomes the keeper's own child,
so none escapes. It kills its direct children alone: nobody else can reap them, so their numbers
cannot have been reused; and it goes on, without a pause for one that forks and ends faster than it
is looked for, until the kernel says that it has no child left. Elsewhere the tree is the runtime's
process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TypedDict

if sys.platform == "win32":
    raise ImportError("Windows has jobs in the place of a keeper")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_FIRST = 1  # the number of a process namespace's first process, in it
_LINUX = sys.platform == "linux"
_PAUSE_SECONDS = 0.002
_LOOKS_WITHOUT_PAUSE = 20_000
_START_LIMIT_BYTES = 1024 * 1024


class _Start(TypedDict):
    """What to start; see `StartCommand` in `process/keeper_protocol.py`."""

    argv: list[str]
    env: dict[str, str]
    descriptors: list[int]
    policy: dict[str, Any] | None
    apart: dict[str, bool] | None
    group: str | None


class _Child(NamedTuple):
    """What was started.

    `pid` is the keeper's child and `runtime` the command's process: the same, or below it where
    the child is the first process of namespaces. Then `report` brings how the command ended.
    """

    pid: int
    runtime: int
    report: int | None


def _prctl(option: int, value: int) -> None:
    if _LINUX and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _receive_start(line: int) -> _Start:
    received = b""
    while not received.endswith(b"\n"):
        part = os.read(line, 65536)
        if not part or len(received) > _START_LIMIT_BYTES:
            os._exit(0)  # the companion is gone before anything was started
        received += part
    start: _Start = json.loads(received)
    return start


def _report(line: int, **facts: int) -> None:
    with contextlib.suppress(OSError):  # nobody is left to hear it
        os.write(line, json.dumps(facts).encode() + b"\n")


def _become_runtime(start: _Start, parent: int, told: int, *, apart: bool) -> NoReturn:
    """Run in the forked child: replace it by the runtime, or say why not and end."""
    try:
        if not apart:
            os.setpgid(0, 0)  # a group of its own, which one signal ends
        # The runtime starts with every signal at the system's default, whatever was inherited.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _write_group(start, "cgroup.procs", b"0")
        if _LINUX:
            locks = _load("locks")
            locks.leave_keyring()
            if start["policy"] is not None:
                locks.lock(start["policy"], apart=apart)
        os.execve(start["argv"][0], start["argv"], start["env"])  # noqa: S606 - the command of a checked plan
    except Exception as error:  # noqa: BLE001 - whatever failed, nothing was started
        os.write(told, b" %d" % (getattr(error, "errno", None) or 0))
    finally:
        os._exit(127)


def _load(name: str) -> ModuleType:
    """Load a file beside this one: with -I and -S the package cannot be imported."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")  # noqa: PTH118, PTH120 - pathlib is not loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_group(start: _Start, name: str, value: bytes) -> None:
    """Write to the runtime's control group, if it has one; the companion checks the result."""
    if start["group"] is not None:
        with contextlib.suppress(OSError):
            file = os.open(f"{start['group']}/{name}", os.O_WRONLY)
            os.write(file, value)
            os.close(file)


def _killed_for_memory(start: _Start) -> bool:
    """Tell whether the kernel ended a process of the group at its ceiling of memory."""
    if start["group"] is None:
        return False
    with contextlib.suppress(OSError), open(f"{start['group']}/memory.events") as events:  # noqa: PTH123 - pathlib is not loaded
        return any(row.startswith("oom_kill ") and row != "oom_kill 0\n" for row in events)
    return False


def _start_runtime(start: _Start) -> tuple[_Child | None, int]:
    """Return what was started and 0, or None and the error number."""
    child = None if start["apart"] is None else _start_apart(start, start["apart"])
    if child is None:
        child = _start_here(start)
    for descriptor in start["descriptors"]:
        os.close(descriptor)
    return child


def _start_here(start: _Start) -> tuple[_Child | None, int]:
    receiving, sending = os.pipe()  # both ends close on exec, so the end of file means success
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_runtime(start, keeper, sending, apart=False)
    os.close(sending)
    failure = _read_all(receiving)
    return (None, int(failure)) if failure else (_Child(pid, pid, None), 0)


def _start_apart(start: _Start, apart: dict[str, bool]) -> tuple[_Child | None, int] | None:
    """Start it in namespaces of its own; None where the system grants none."""
    namespaces = _load("namespaces")
    receiving, sending = os.pipe()
    report, reporting = os.pipe()
    first = namespaces.fork_apart(network=apart["network"])
    if first == 0:
        try:
            os.close(report)  # its end says that the keeper is gone
            namespaces.stand_first(reporting)
            # /proc is the keeper's: this is the number that the keeper and the companion know.
            os.write(sending, os.readlink("/proc/self").encode())  # noqa: PTH115 - pathlib is not loaded
            _become_runtime(start, _FIRST, sending, apart=True)
        finally:
            os._exit(127)
    os.close(sending)
    os.close(reporting)
    number, _, failure = _read_all(receiving).partition(b" ")
    if first > 0 and number and not failure:
        return _Child(first, int(number), report), 0
    os.close(report)
    if first > 0:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    return (None, int(failure)) if failure else None


def _read_all(pipe: int) -> bytes:
    content = b""
    while part := os.read(pipe, 64):
        content += part
    os.close(pipe)
    return content


def _exit_code(child: _Child) -> int | None:
    """Return the runtime's exit code if it has ended, and reap what else has.

    Where it can be, the runtime's own process is left to be reaped by `_end_tree`: until then no
    other process can have its number, nor its group's.
    """
    while True:
        if sys.platform == "linux":
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_pid == child.pid:
                told = b"" if child.report is None else _read_all(child.report)
                code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                return os.waitstatus_to_exitcode(int(told)) if told else code
            if ended is None:
                return None
            os.waitpid(ended.si_pid, 0)
        else:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in {0, child.pid}:
                return os.waitstatus_to_exitcode(status) if pid else None


def _has_children() -> bool:
    """Reap what has ended, and tell whether any child is left; the kernel's word, not /proc's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


class _Children:
    """The keeper's direct children, as the kernel lists them.

    The list is opened before the runtime starts, which may take descriptors from its keeper where
    nothing holds it. A kernel that has no list (CONFIG_PROC_CHILDREN) has all processes read.
    """

    def __init__(self) -> None:
        self._list = -1
        with contextlib.suppress(OSError):
            self._list = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)

    def kill(self) -> None:
        """Kill those that can be seen now; what a child leaves behind becomes one of them."""
        for pid in self._read():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _read(self) -> list[int]:
        with contextlib.suppress(OSError):  # the caller goes on until none is left
            if self._list >= 0:
                return [int(pid) for pid in os.pread(self._list, 65536, 0).split()]
            return [int(name) for name in os.listdir("/proc") if self._is_own(name)]  # noqa: PTH208 - pathlib is not loaded
        return []

    def _is_own(self, name: str) -> bool:
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - pathlib is not loaded
                return int(file.read().rsplit(b")", 1)[1].split()[1]) == os.getpid()
        return False


def _kill_at_once(child: _Child) -> None:
    """Kill what is in the runtime's namespaces or has stayed in its group: one signal ends it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if child.report is None:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            os.kill(child.pid, signal.SIGKILL)


def _end_tree(child: _Child, start: _Start, children: _Children | None) -> None:
    """Kill and reap until nothing is left below this process, nor in the runtime's group."""
    _write_group(start, "cgroup.kill", b"1")
    _kill_at_once(child)
    looks = 0
    while _has_children():
        looks += 1
        if children is None:
            _kill_at_once(child)
        elif child.report is None:
            children.kill()
        if children is None or child.report is not None or looks > _LOOKS_WITHOUT_PAUSE:
            time.sleep(_PAUSE_SECONDS)
    if start["group"] is not None:
        with contextlib.suppress(OSError):  # it is not empty yet: the companion removes it
            os.rmdir(start["group"])  # noqa: PTH106 - pathlib is not loaded


def main() -> NoReturn:
    """Start the runtime, watch it and the companion, and end the whole tree with either."""
    line = int(sys.argv[1])
    os.set_inheritable(line, False)  # noqa: FBT003 - takes no keyword
    # A signal to the whole process group must not end the keeper before its tree.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold prompts and the key
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    children = _Children() if _LINUX else None
    start = _receive_start(line)
    child, error = _start_runtime(start)
    if child is None:
        _report(line, failed=error)
        os._exit(0)
    _report(line, started=child.runtime, first=0 if child.report is None else child.pid)

    while True:
        readable, _, _ = select.select([line, wake], [], [])
        if wake in readable:
            os.read(wake, 512)
            code = _exit_code(child)
            if code is not None:
                _report(line, exited=code, for_memory=_killed_for_memory(start))
                break
        if line in readable and not os.read(line, 512):
            break
    _end_tree(child, start, children)
    os._exit(0)


if __name__ == "__main__":
    main()
