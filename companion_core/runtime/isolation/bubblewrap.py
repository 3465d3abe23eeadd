"""The bubblewrap tier: namespaces of its own, an empty file system with binds, no network.

The whole tree lives in a process namespace whose end ends all of it. With `--unshare-all`
there is one loopback interface of its own: a TCP runtime listens there, and only a helper
started inside can connect to it (`runtime/standalone/broker.py`). Bubblewrap installs the filter of
system calls last of all, so that it holds for the helper, the runtime and all that they start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from companion_core.errors import CompanionError
from companion_core.runtime.isolation.call_filter import MACHINES, FilterShape, compile_filter
from companion_core.runtime.isolation.policy import SandboxPolicy
from companion_core.runtime.process.binary import check_unreplaceable

__all__ = ["TEMPORARY_BYTES", "find_bubblewrap", "open_filter", "wrap"]

_PLACES: Final = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/run/current-system/sw/bin/bwrap")
# What is written there is memory. It cannot grow further, and counts as the runtime's (I-12).
TEMPORARY_BYTES: Final = 64 * 1024 * 1024
_SIZED: Final = ("--size", str(TEMPORARY_BYTES), "--tmpfs")
_FIXED: Final = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *(*_SIZED, "/tmp", "--dev", "/dev", *_SIZED, "/dev/shm", "--proc", "/proc"),  # noqa: S108 - new, empty file systems
)
# Root is root in a sandbox too, as far as files are asked: without this it changes the kernel's
# settings in /proc/sys. /dev is memory without a size.
_READ_ONLY: Final = tuple(
    part for path in ("/proc", "/dev", "/") for part in ("--remount-ro", path)
)


def open_filter(policy: SandboxPolicy) -> int | None:
    """Return a descriptor of the compiled filter, for its owner to close.

    None where there is no list of system calls for this machine, whose sandbox has none then.
    """
    if sys.platform != "linux" or os.uname().machine not in MACHINES:
        return None
    shape = FilterShape(unix=True, tcp=True, connect=True, devices=bool(policy.devices))
    program = compile_filter(shape, os.uname().machine)
    descriptor = os.memfd_create("calls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, program)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def find_bubblewrap(places: Sequence[str] = _PLACES) -> str | None:
    """Return an installed bubblewrap that no other user can replace; PATH is not searched."""
    for place in places:
        if Path(place).is_file():
            try:
                check_unreplaceable(Path(place))
            except CompanionError:
                return None
            return place
    return None


def wrap(
    program: str,
    argv: Sequence[str],
    policy: SandboxPolicy,
    *,
    folder: str,
    calls: int | None = None,
) -> tuple[str, ...]:
    """Return the command that runs `argv` in `folder` and lets it reach what `policy` names.

    `calls` is the descriptor that `open_filter` returned; bubblewrap reads and closes it.

    Binds are made from the shortest path to the longest, so that a folder never covers what
    was bound below it. Bubblewrap closes the descriptors of the model's files once they are
    mounted, and refuses to start when it has mounted another file.
    """
    binds = [(path, "--ro-bind", path) for path in policy.read]
    binds += [(path, "--dev-bind", path) for path in policy.devices]
    binds += [(path, "--bind", path) for path in policy.write]
    binds += [(path, "--ro-bind-fd", str(descriptor)) for path, descriptor in policy.models]
    mounts = [
        part
        for path, kind, source in sorted(binds, key=lambda bind: len(bind[0]))
        for part in (kind, source, path)
    ]
    filtered = () if calls is None else ("--seccomp", str(calls))
    return (program, *_FIXED, *mounts, *_READ_ONLY, *filtered, "--chdir", folder, "--", *argv)
