"""What a confined runtime may reach: the system's libraries, its own program, two folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.isolation.call_filter import FilterShape, compile_filter
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.runtime.process.keeper_protocol import LockPolicy
from companion_core.system.interpreter import Interpreter, running_interpreter

__all__ = ["SandboxPolicy", "sandbox_policy"]

_SYSTEM: Final = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/opt/homebrew",  # programs and libraries of macOS, as /usr/local holds them elsewhere
    "/sys/devices/system",  # how many cores there are, and which
)
_GPU: Final = ("/sys", "/etc/OpenCL", "/etc/vulkan", "/opt/rocm")
_GPU_DEVICES: Final = ("nvidia*", "dri", "kfd")
# For a tier without a /proc of its own: the child's entry, and numbers of the machine.
_OWN_PROC: Final = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat")
_PLAIN_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What one runtime may reach: absolute paths, and where it listens.

    Attributes:
        read: files and folders that it may read and execute.
        write: folders that it may change.
        devices: accelerators.
        models: the path under which it opens each of the model's files, and the descriptor that
            leads there.
        port: of its loopback listener; None for a Unix socket.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    models: tuple[tuple[str, int], ...]
    port: int | None

    @classmethod
    def of_program(cls, program: str) -> SandboxPolicy:
        """Return the policy of a program that needs nothing but itself and the libraries."""
        read = _existing((*_SYSTEM, *_beside(program)))
        return cls(read=read, write=(), devices=(), models=(), port=None)

    def lock_policy(self, machine: str, *, signals_scoped: bool) -> LockPolicy:
        """Return what a process locks itself in with (`standalone/locks.py`).

        Args:
            machine: as the kernel names it; one of `MACHINES`.
            signals_scoped: the kernel's Landlock keeps signals inside the tree.
        """
        models = (path for path, _ in self.models)
        apart = FilterShape(
            unix=self.port is None,
            tcp=self.port is not None,
            connect=False,  # Landlock does not judge who is at the other end of a Unix socket
            devices=bool(self.devices),
        )
        # Without a process namespace the tree is ended by its group.
        here = replace(apart, signals=signals_scoped, leave_group=False)
        return LockPolicy(
            read=(*self.read, *models, *_OWN_PROC),
            write=self.write,
            devices=(*_PLAIN_DEVICES, *self.devices),
            port=self.port,
            calls=compile_filter(apart, machine),
            calls_here=compile_filter(here, machine),
        )


def sandbox_policy(
    plan: SpawnPlan,
    binary: ProvedBinary,
    channel: UnixChannel | TcpChannel,
    *,
    write: Iterable[Path],
    models: Iterable[tuple[str, int]],
    interpreter: Interpreter | None = None,
) -> SandboxPolicy:
    """Return what a checked plan needs.

    Where no descriptor leads to a linked model, its link is named in `read`. A stand-alone program
    gets its own file and the libraries beside it, an embedded one the folders of its interpreter;
    its plugin names what else it loads in `read_paths`. Paths that do not exist are left out.
    """
    if binary.embedded:
        program = (interpreter or running_interpreter()).folders
    else:
        program = _beside(binary.path)
    gpu = _GPU if plan.gpu else ()
    reached = tuple(models)
    linked = () if plan.model_link is None or reached else (plan.model_link,)
    devices = [str(path) for name in _GPU_DEVICES for path in sorted(Path("/dev").glob(name))]
    return SandboxPolicy(
        read=_existing((*_SYSTEM, *program, *plan.read_paths, *gpu, *linked)),
        write=tuple(str(path) for path in write),
        devices=tuple(devices) if plan.gpu else (),
        models=reached,
        port=None if isinstance(channel, UnixChannel) else channel.port,
    )


def _beside(program: str) -> tuple[str, ...]:
    found = [program, os.path.realpath(program)]
    for path in map(Path, tuple(found)):
        found += [str(library) for library in path.parent.glob("*.so*")]
    return tuple(found)


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths that exist, without those that lie below another of them."""
    found = dict.fromkeys(path for path in paths if os.path.lexists(path))
    return tuple(path for path in found if not any(map(found.__contains__, _above(path))))


def _above(path: str) -> list[str]:
    return [str(folder) for folder in Path(path).parents]
