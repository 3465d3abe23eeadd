"""Time from a runtime's own readiness until the companion serves it; prints a table of medians.

    python benchmarks/readiness.py [ROUNDS]

Not a test: numbers depend on the machine. A runtime is ready when its socket accepts and its
health path answers 200: the test runtime notes that moment itself, llama.cpp is asked for it
without a pause by a process beside it. `launched` is when the supervisor has read the runtime's
sockets and environment back and returns, `available` when a health check was answered through
the gateway, resources are observed, and the lifecycle is `ready`. The aim is at most 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from companion_core.testing import FakeHealthChecker, FakeSpawner
from companion_core.testing.fake_runtime import READY_AT

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
try:
    from runtime_parts import machine, verified_model
    from serving_parts import make_serving
finally:
    sys.path.pop(0)

MODEL = ROOT / "companion_core" / "demo" / "model" / "companion-tiny.gguf"

# Asks without a pause; prints when the last answer came that was not yet 200.
OBSERVER = """
import socket, sys, time
print("asking", flush=True)
not_yet = time.monotonic()
while True:
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(sys.argv[1])
            asking.sendall(b"GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
            if asking.recv(64).split(b" ")[1] == b"200":
                break
        except OSError:
            pass
    not_yet = time.monotonic()
    time.sleep(0.0001)
print(not_yet, flush=True)
"""


@dataclass(frozen=True)
class Case:
    """One way to become ready."""

    name: str
    spawner: Any
    health: Any = field(default_factory=FakeHealthChecker)
    model: Path | None = None


def silent(plan: Any, _request: Any) -> Any:
    """Plan the same start, without a text that announces it."""
    return replace(plan, ready_text=None)


def cases() -> Iterator[Case]:
    """Name what is timed; llama.cpp where it is installed."""
    unix, tcp = frozenset({"unix"}), frozenset({"tcp"})
    for name, channels in (("Unix socket", unix), ("TCP", tcp)):
        announced = FakeSpawner(("slow",), channels=channels)
        yield Case(f"{name}, announced", announced)
        yield Case(f"{name}, found listening", replace(announced, alter=silent))
    busy = FakeSpawner(("busy",), alter=silent)
    yield Case("Unix socket, 503 while it loads", busy)
    if importlib.util.find_spec("companion_runtime_llamacpp") is not None:
        from companion_runtime_llamacpp.plugin import companion_health, companion_spawn

        yield Case("llama.cpp, embedded", companion_spawn(), companion_health(), MODEL)


async def time_start(case: Case) -> tuple[float, float]:
    """Return milliseconds from the runtime's own readiness until launched, and until available."""
    with machine() as made, contextlib.ExitStack() as closing:
        model = made.model
        modules, program = frozenset[str](), str(made.program)
        if case.model is not None:
            model = verified_model(case.model)
            closing.callback(model.close)
            modules, program = frozenset({"companion_runtime_llamacpp.embedded"}), "embedded"
        digest = hashlib.sha256(made.program.read_bytes()).hexdigest()
        serving = make_serving(
            made.folder,
            spawner=case.spawner,
            health=case.health,
            modules=modules,
            binary=program,
            **({} if case.model else {"binary_sha256": digest}),
        )
        await serving.open()
        launched: list[float] = []
        observers: list[subprocess.Popen[str]] = []
        gc.collect()
        attach = serving.gateway.attach

        def noted(backend: Any) -> None:
            launched.append(time.monotonic())
            attach(backend)

        serving.gateway.attach = noted  # type: ignore[method-assign] - the first thing after
        starting = asyncio.ensure_future(serving.start(model))
        try:
            if case.model is not None:
                observers.append(await observe(serving, starting))
            await starting
            available = time.monotonic()
            folder = serving._supervisor._run.folder
            if observers:
                ready = float(observers[0].communicate()[0].split()[-1])
            else:
                async with asyncio.timeout(10):
                    while not (note := folder / READY_AT).exists() or not note.read_text():
                        await asyncio.sleep(0.001)
                ready = float(note.read_text())
        finally:
            await serving.stop()
            await serving.gateway.close()
        return (launched[0] - ready) * 1e3, (available - ready) * 1e3


async def observe(serving: Any, starting: asyncio.Future[None]) -> subprocess.Popen[str]:
    """Start the process that asks the runtime for its health, as soon as its folder is there."""
    while serving._supervisor._run is None or serving._supervisor._run.folder is None:
        await asyncio.sleep(0)
    path = serving._supervisor._run.folder / "backend.sock"
    observer = subprocess.Popen(
        [sys.executable, "-IS", "-c", OBSERVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert observer.stdout is not None
    return observer


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print("| ms behind the runtime's own readiness | launched | available |")
    print("| --- | --- | --- |")
    for case in cases():
        times = [asyncio.run(time_start(case)) for _ in range(rounds)]
        columns = list(zip(*times, strict=True))
        shown = " | ".join(
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in columns
        )
        print(f"| {case.name} | {shown} |")


if __name__ == "__main__":
    main()
