"""What a test needs to start a runtime, and to look at it from outside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from companion_core.decisions.integrity import parse_model_spec
from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.decisions.manifest_kind import Role
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError
from companion_core.models.proof import Proof, identify
from companion_core.models.store import ProvedFile, VerifiedModel
from companion_core.providers import ResourceLimits
from companion_core.runtime import StartSpec, Supervisor
from companion_core.system.clock import recency_now
from companion_core.testing import FakeSpawner, write_fake_runtime

ROOT = Path(__file__).parents[2]
ORDINARY_USER = 65534
LIMITS = ResourceLimits(max_ram_bytes=2**40, max_vram_bytes=None, max_cpu_percent=100)


def forge(kind: type, **fields: Any) -> Any:
    """Make evidence without the proof: tests of the runtime do not stage."""
    value = object.__new__(kind)
    for name, content in fields.items():
        object.__setattr__(value, name, content)
    return value


def verified_model(*paths: Path, roles: Mapping[str, Role] = MappingProxyType({})) -> VerifiedModel:
    files = []
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(descriptor)
        proof = Proof(descriptor, identify(status), held=False)
        files.append(
            forge(
                ProvedFile,
                name=path.name,
                spec=parse_model_spec(
                    hashlib.sha256(path.read_bytes()).hexdigest(), status.st_size
                ),
                path=str(path),
                proof=proof,
                role=roles.get(path.name, Role.MODEL),
                pieces=None,
            )
        )
    return forge(
        VerifiedModel,
        model_id="tiny",
        format="gguf",
        chat_template=None,
        files=tuple(files),
        _open=[file.descriptor for file in files],
        _hold=lambda _descriptor, _pause: False,
    )


class Listener:
    """Tells the name of each event of a start; satisfies `StartListener`."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        self._hear = hear

    def launched(self, _backend: Any) -> None:
        self._hear("launched")

    def connectable(self) -> None:
        self._hear("connectable")

    def not_connectable(self) -> None:
        self._hear("not_connectable")

    def prepared(self) -> None:
        self._hear("prepared")


class Machine:
    """One person's machine: a program, a model, a supervisor, and folders for all of it.

    Attributes:
        exits: how often the supervisor told of an end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = write_fake_runtime(folder / "runtime")
        self.model_file = folder / "tiny.gguf"
        self.model_file.write_bytes(b"GGUF, as far as this runtime cares")
        self.model = verified_model(self.model_file)
        self.exits = 0
        self.tell(lambda _event: None)

    def tell(self, hear: Callable[[str], object]) -> None:
        """Have another supervisor, whose listener tells the name of each event of a start."""
        self.supervisor = Supervisor(LiveEgress(), clock=recency_now, listener=Listener(hear))
        self.supervisor.on_exit = self._count

    def _count(self) -> None:
        self.exits += 1

    def spec(self, *behaviour: str, **changes: Any) -> StartSpec:
        spec = StartSpec(
            spawner=FakeSpawner(behaviour),
            plugin_name="test",
            plugin_modules=frozenset(),
            binary=str(self.program),
            binary_sha256=hashlib.sha256(self.program.read_bytes()).hexdigest(),
            model=self.model,
            data_dir=self.folder / "data",
            run_dir=self.folder / "run",
            log_path=self.folder / "runtime.log",
            record_path=self.folder / "runtime.json",
            limits=LIMITS,
            parallel=1,
            threads=1,
            context_length=None,
            options={},
            tier=Tier.NONE,
        )
        return replace(spec, **changes)

    def leftovers(self) -> list[str]:
        """What a start left in its run folder, and processes that still belong to it."""
        files = [path.name for path in (self.folder / "run").glob("*")]
        return files + [str(pid) for pid in self.processes()]

    def processes(self) -> list[int]:
        """Living processes that run this machine's program."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = str(self.program) in process.cmdline()
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self.model.close()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@contextmanager
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="cc-") as folder:
        made = Machine(Path(folder))
        try:
            yield made
        finally:
            made.close()


def mode(path: str | Path) -> int:
    return Path(path).stat().st_mode & 0o777


def environment(pid: int) -> dict[str, str]:
    block = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in block.split("\0") if entry)


def descriptors(pid: int) -> dict[int, str]:
    """What the process has open beyond stdin, stdout and stderr."""
    entries = Path(f"/proc/{pid}/fd").iterdir()
    return {int(entry.name): str(entry.readlink()) for entry in entries if int(entry.name) > 2}


def kernel_facts(pid: int) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """What /proc says of a process: its status, and its limits as (soft, hard)."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}
    table = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    limits = {row[:26].strip(): tuple(row[26:].split()[:2]) for row in table}
    return status, limits


async def until(condition: Callable[[], object]) -> None:
    """As `wait_until`, inside an event loop."""
    assert await asyncio.to_thread(wait_until, condition)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait for something that happens soon; the bound only ends a broken test."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def within(condition: Callable[[], object], seconds: float) -> bool:
    """Look as often as fits into so many seconds of an idle machine; a busy one has longer."""
    for _ in range(round(seconds / 0.05)):
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def run_as(user: int, arguments: list[str], folder: Path, **options: Any) -> Any:
    """Start Python with the package and its tests in reach, as root or as an ordinary user.

    `folder` is that user's own, and the home; None where no Python can be had for that user.
    """
    os.chown(folder, user, user)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([path, sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    identity = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    for interpreter in (sys.executable, "/usr/bin/python3"):  # the first may be root's alone
        shared = {"env": environment, "cwd": ROOT, **identity}
        usable = "import sys, psutil; sys.exit(sys.version_info < (3, 11))"
        try:
            tried = subprocess.run([interpreter, "-c", usable], check=False, **shared)
        except OSError:
            continue
        if tried.returncode == 0:
            return subprocess.Popen([interpreter, *arguments], **shared, **options)
    return None


def refused_start(machine, spec) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec))
    assert machine.supervisor.state is State.STOPPED
    assert machine.supervisor.runtime_pid is None
    assert machine.leftovers() == []
    assert machine.exits == 0
    return caught.value
