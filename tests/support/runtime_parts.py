"""Runtimes written for tests, kind and hostile, and what it takes to start them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from companion_core.clock import recency_now
from companion_core.decisions.isolation import Tier
from companion_core.egress import LiveEgress
from companion_core.providers import ResourceLimits, SpawnPlan, SpawnRequest, UnixChannel
from companion_core.runtime.staging import ProvedFile, VerifiedModel
from companion_core.runtime.supervisor import StartSpec, Supervisor

LIMITS = ResourceLimits(max_ram_bytes=2**40, max_vram_bytes=None, max_cpu_percent=100)
READY = "test runtime: ready"

# A whole runtime. `MODEL ADDRESS BEHAVIOUR…`: what it does wrong, if anything.
PROGRAM = f"""#!{sys.executable} -IS
import os, signal, socket, subprocess, sys, time
model, address, *behaviour = sys.argv[1:]
open("model.seen", "wb").write(open(model, "rb").read())
print("started", flush=True)
if "exit" in behaviour:
    sys.exit(3)
if "hang" in behaviour:
    time.sleep(3600)
if "stubborn" in behaviour:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "offspring" in behaviour:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        time.sleep(3600)
    os.wait()  # from here on there is the one that stays, and nothing between
if "leak" in behaviour:
    subprocess.Popen(["/bin/sleep", "3600"], env={{**os.environ, "SMUGGLED": "1"}})

def listen_wide(*_):
    wide = socket.socket()
    wide.bind(("0.0.0.0", 0))
    wide.listen()
    globals().setdefault("kept", []).append(wide)

if "wide" in behaviour:
    listen_wide()
if "udp" in behaviour:
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
signal.signal(signal.SIGUSR1, listen_wide)
if address.startswith("/"):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
else:
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.bind((host, int(port)))
listener.listen()
print({READY!r}, os.environ.get("TEST_RUNTIME_KEY", ""), flush=True)
while True:
    client, _ = listener.accept()
    request = b""
    while b"\\r\\n\\r\\n" not in request and (part := client.recv(65536)):
        request += part
    head, _, body = request.partition(b"\\r\\n\\r\\n")
    length = int(head.rpartition(b"Content-Length: ")[2].split()[0]) if b"Content-L" in head else 0
    while len(body) < length and (part := client.recv(65536)):
        body += part
    if b"POST /refuse" in request:
        client.sendall(b"HTTP/1.0 500 no\\r\\n\\r\\n")
    elif request:
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        client.sendall(b'{{"status":"working"}}\\n{{"status":"success"}}\\n')
    client.close()
"""


def forge(kind: type, **fields: Any) -> Any:
    """Make evidence without the proof: tests of the runtime do not stage."""
    value = object.__new__(kind)
    for name, content in fields.items():
        object.__setattr__(value, name, content)
    return value


def verified_model(*paths: Path) -> VerifiedModel:
    files = []
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(descriptor)
        files.append(
            forge(
                ProvedFile,
                name=path.name,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                size=status.st_size,
                descriptor=descriptor,
                path=str(path),
                identity=(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),
                held=False,
            )
        )
    return forge(
        VerifiedModel,
        model_id="tiny",
        format="gguf",
        chat_template=None,
        files=tuple(files),
        _open=[file.descriptor for file in files],
    )


@dataclass
class FakeSpawner:
    """Plans the test runtime; `alter` changes the plan as a hostile plugin would."""

    behaviour: tuple[str, ...] = ()
    alter: Callable[[SpawnPlan, SpawnRequest], Any] = lambda plan, _request: plan
    channels: frozenset[str] = frozenset({"unix", "tcp"})
    formats: frozenset[str] = frozenset({"gguf"})
    env_names: frozenset[str] = frozenset({"TEST_RUNTIME_KEY", "TEST_MODE"})
    child_env_names: frozenset[str] = frozenset()
    option_names: frozenset[str] = frozenset({"known"})

    def locate(self) -> list[Any]:
        return []

    def plan(self, request: SpawnRequest) -> Any:
        channel = request.channel
        unix = isinstance(channel, UnixChannel)
        address = channel.path if unix else f"{channel.host}:{channel.port}"
        plan = SpawnPlan(
            argv=(request.binary, request.model_path, address, *self.behaviour),
            served_model="served",
            backend_key_env=None if unix else "TEST_RUNTIME_KEY",
            ready_text=READY,
            read_paths=(sys.prefix, sys.base_prefix),
            start_deadline_seconds=20,
        )
        return self.alter(plan, request)


class Machine:
    """One person's machine: a program, a model, a supervisor, and folders for all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "runtime"
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)
        self.model_file = folder / "tiny.gguf"
        self.model_file.write_bytes(b"GGUF, as far as this runtime cares")
        self.model = verified_model(self.model_file)
        self.exits = 0
        self.supervisor = Supervisor(LiveEgress(), clock=recency_now)
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


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Wait for something that happens soon; the bound only ends a broken test."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
