"""Hard ceilings on Linux: a control group of the runtime's own, in a delegated one (I-12).

A group is delegated where a service manager handed it over (systemd: `Delegate=yes`): its
folder is then the person's, and the companion is alone in it. A group that limits its leaves may
have no process of its own (cgroups(7), "no internal processes"), so the companion moves into one
leaf and the runtime is started in another. A step that fails undoes the earlier ones.

A companion that was killed leaves its two leaves. An empty leaf is removed. A leaf with
processes in it stays, and another name is taken: nothing here proves that they are ours to end.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from companion_core.providers import ResourceLimits

__all__ = ["ControlGroup", "NoControlGroup", "find_delegated_group"]

_PROCESS: Final = Path("/proc/self")
_NEEDED: Final = ("memory", "cpu")
_OPTIONAL: Final = ("pids",)
_PERIOD_MICROSECONDS: Final = 100_000
_MOST_PROCESSES: Final = 4096  # threads count too; far above what a runtime has
# Files that may be missing: the kernel has no swap, or the controller was not delegated.
_OPTIONAL_SETTINGS: Final = (("memory.swap.max", "0"), ("pids.max", str(_MOST_PROCESSES)))
_WHOLE_MACHINE: Final = 100.0


class NoControlGroup(Exception):
    """The kernel offers no ceilings here; the text says why, for a person."""


class ControlGroup:
    """The group of one runtime, made by `make`.

    Attributes:
        path: its folder; a process enters it by writing "0" to `cgroup.procs` there.
    """

    def __init__(self, delegated: Path) -> None:
        self.path = _free_leaf(delegated, "runtime")
        self._delegated = delegated
        self._own = _free_leaf(delegated, "companion")
        self._closed = False

    @classmethod
    def make(cls, limits: ResourceLimits, process: Path = _PROCESS) -> ControlGroup:
        """Move this process into a leaf, and make the runtime's beside it with its ceilings.

        Args:
            limits: memory for the group as a whole, in bytes, without any swap; processor
                time in per cent of the machine. Graphics memory is not the kernel's to limit.
            process: the folder in /proc of the calling process.

        Raises:
            NoControlGroup: nothing has changed.
        """
        group = cls(find_delegated_group(process))
        try:
            group._set_up(limits)
        except OSError as error:
            group.close()
            code = errno.errorcode.get(error.errno or 0, "failed")
            raise NoControlGroup(f"the control group could not be set up ({code})") from error
        return group

    def contains(self, pid: int) -> bool:
        """Tell whether the kernel lists the process in the group."""
        try:
            return str(pid) in _read(self.path / "cgroup.procs").split()
        except OSError:
            return False

    def close(self) -> None:
        """End every process of the group, remove both leaves, and move this process back.

        Only the first call does so: a later group may have the same folders.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            _write(self.path / "cgroup.kill", "1")
        self._remove_leaf(self.path)
        for controller in (*_NEEDED, *_OPTIONAL):
            with contextlib.suppress(OSError):
                _write(self._delegated / "cgroup.subtree_control", f"-{controller}")
        with contextlib.suppress(OSError):
            _write(self._delegated / "cgroup.procs", "0")
        self._remove_leaf(self._own)

    def _set_up(self, limits: ResourceLimits) -> None:
        _make(self._own)
        _write(self._own / "cgroup.procs", "0")
        control = self._delegated / "cgroup.subtree_control"
        _write(control, " ".join(f"+{controller}" for controller in _NEEDED))
        for controller in _OPTIONAL:
            with contextlib.suppress(OSError):
                _write(control, f"+{controller}")
        _make(self.path)
        for name, value in _settings(limits):
            _write(self.path / name, value)
        for name, value in _OPTIONAL_SETTINGS:
            with contextlib.suppress(FileNotFoundError):
                _write(self.path / name, value)

    @staticmethod
    def _remove_leaf(leaf: Path) -> None:
        with contextlib.suppress(OSError):
            _remove(leaf)


def find_delegated_group(process: Path = _PROCESS) -> Path:
    """Return the folder of the group in which this process is alone and which it may divide.

    Raises:
        NoControlGroup: there is no such group.
    """
    group = _own_group(process)
    try:
        kind = _read(group / "cgroup.type").strip()  # the root group has no such file
        controllers = set(_read(group / "cgroup.controllers").split())
        inside = _read(group / "cgroup.procs").split()
    except OSError as error:
        raise NoControlGroup("the companion runs in no control group of its own") from error
    missing = [name for name in _NEEDED if name not in controllers]
    if missing:
        raise NoControlGroup(f"no control over {' and '.join(missing)} is delegated")
    files = (group / name for name in ("", "cgroup.procs", "cgroup.subtree_control"))
    if kind != "domain" or not all(os.access(file, os.W_OK) for file in files):
        raise NoControlGroup("the control group is not delegated")
    if inside != [str(os.getpid())]:
        raise NoControlGroup("other programs run in the same control group")
    return group


def _own_group(process: Path) -> Path:
    """Return the folder of this process's group in the hierarchy of version 2."""
    try:
        groups = _read(process / "cgroup").splitlines()
        mounts = [*_unified_mounts(_read(process / "mountinfo"))]
    except OSError as error:
        raise NoControlGroup("this system does not tell its control groups") from error
    names = [line.removeprefix("0::") for line in groups if line.startswith("0::/")]
    if not names or not mounts or ".." in names[0].split("/"):
        raise NoControlGroup("this system has no control groups of version 2")
    return mounts[0] / names[0].lstrip("/")


def _unified_mounts(table: str) -> Iterator[Path]:
    """Yield the mount points of the whole hierarchy (proc(5), mountinfo)."""
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split()[:1] == ["cgroup2"] and fields[3] == "/":
            yield Path(fields[4])


def _free_leaf(delegated: Path, name: str) -> Path:
    """Return the first name of a leaf that is free; removes empty leaves of that name."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(leaf for leaf in map(delegated.joinpath, names) if not _has_processes(leaf))


def _has_processes(leaf: Path) -> bool:
    """Tell whether a leaf could not be removed because processes are in it."""
    try:
        _remove(leaf)
    except OSError as error:
        return error.errno in {errno.EBUSY, errno.ENOTEMPTY}
    return False


def _settings(limits: ResourceLimits) -> Iterator[tuple[str, str]]:
    """Yield the files of the group and what they say (cgroup-v2, "Controllers")."""
    yield "memory.max", str(limits.max_ram_bytes)
    yield "memory.oom.group", "1"  # the kernel kills the whole runtime, never a part of it
    if limits.max_cpu_percent < _WHOLE_MACHINE:
        cores = limits.max_cpu_percent / _WHOLE_MACHINE * (os.cpu_count() or 1)
        quota = max(1000, int(cores * _PERIOD_MICROSECONDS))  # the kernel refuses less
        yield "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}"


# Access to the kernel's files: a write is one system call, and never creates a file.


def _read(file: Path) -> str:
    return file.read_text()


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o755)


def _remove(folder: Path) -> None:
    folder.rmdir()
