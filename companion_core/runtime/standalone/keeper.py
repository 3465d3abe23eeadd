"""The keeper: stands between the companion and the runtime, and outlives neither (I-08).

It runs as a program of its own, `python -I -S keeper.py DESCRIPTOR`, and imports only the standard
library. The descriptor is one end of a pair of sockets; the companion alone has the other end. The
start arrives on it as one line of JSON (the companion's side is `process/keeper_protocol.py`),
reports leave on it, and its end of file means that the companion is gone, whatever killed it. Then,
or when the runtime ends, the keeper kills everything below itself and ends too.

On Linux the keeper is the subreaper of the tree: a process whose parent dies becomes the keeper's
own child, so none escapes. It kills its direct children alone: nobody else can reap them, so their
numbers cannot have been reused. Elsewhere the tree is the runtime's process group.
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
from typing import Any, NoReturn, TypedDict

if sys.platform == "win32":
    raise ImportError("Windows has jobs in the place of a keeper")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_LINUX = sys.platform == "linux"
_PAUSE_SECONDS = 0.002
_START_LIMIT_BYTES = 1024 * 1024


class _Start(TypedDict):
    """What to start; see `StartCommand` in `process/keeper_protocol.py`."""

    argv: list[str]
    env: dict[str, str]
    descriptors: list[int]
    policy: dict[str, Any] | None
    group: str | None


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


def _become_runtime(start: _Start, keeper: int, failure: int) -> NoReturn:
    """Run in the forked child: replace it by the runtime, or say why not and end."""
    try:
        if not _LINUX:
            os.setpgid(0, 0)
        # The runtime starts with every signal at the system's default, whatever was inherited.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        _write_group(start, "cgroup.procs", b"0")
        if start["policy"] is not None:
            _load_locks().lock(start["policy"])
        os.execve(start["argv"][0], start["argv"], start["env"])  # noqa: S606 - the command of a checked plan
    except Exception as error:  # noqa: BLE001 - whatever failed, nothing was started
        os.write(failure, str(getattr(error, "errno", None) or 0).encode())
    finally:
        os._exit(127)


def _load_locks() -> ModuleType:
    """Load the file beside this one: with -I and -S the package cannot be imported."""
    path = os.path.join(os.path.dirname(__file__), "locks.py")  # noqa: PTH118, PTH120 - pathlib is not loaded
    spec = importlib.util.spec_from_file_location("locks", path)
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


def _start_runtime(start: _Start) -> tuple[int, int]:
    """Return the runtime's process id and 0, or 0 and the error number."""
    receiving, sending = os.pipe()  # both ends close on exec, so the end of file means success
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_runtime(start, keeper, sending)
    os.close(sending)
    for descriptor in start["descriptors"]:
        os.close(descriptor)
    failure = os.read(receiving, 16)
    os.close(receiving)
    return (0, int(failure)) if failure else (pid, 0)


def _reap(runtime: int) -> tuple[int | None, bool]:
    """Return the runtime's exit code if it ended now, and whether any child is left."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == runtime:
            code = os.waitstatus_to_exitcode(status)


def _own_children() -> list[int]:
    """Return the children that can be seen now; `_end_tree` asks again until none is left."""
    me, children = str(os.getpid()).encode(), []
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - pathlib is not loaded
    except OSError:
        return []
    for name in filter(str.isdigit, names):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - pathlib is not loaded
            if file.read().rsplit(b")", 1)[1].split()[1] == me:
                children.append(int(name))
    return children


def _end_tree(runtime: int, start: _Start) -> None:
    """Kill and reap until nothing is left below this process, nor in the runtime's group."""
    _write_group(start, "cgroup.kill", b"1")
    while True:
        if _LINUX:
            for pid in _own_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(runtime, signal.SIGKILL)
        if not _reap(runtime)[1]:
            break
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

    start = _receive_start(line)
    runtime, error = _start_runtime(start)
    if not runtime:
        _report(line, failed=error)
        os._exit(0)
    _report(line, started=runtime)

    while True:
        readable, _, _ = select.select([line, wake], [], [])
        if wake in readable:
            os.read(wake, 512)
            code, _ = _reap(runtime)
            if code is not None:
                _report(line, exited=code, for_memory=_killed_for_memory(start))
                break
        if line in readable and not os.read(line, 512):
            break
    _end_tree(runtime, start)
    os._exit(0)


if __name__ == "__main__":
    main()
