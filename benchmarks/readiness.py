"""Time from a runtime's own readiness until it is served; prints a table of medians.

    python benchmarks/readiness.py [ROUNDS]

Not a test: numbers depend on the machine. A runtime is ready when its socket accepts and its
health path answers 200. The test runtime notes that moment itself; llama.cpp is asked without a
pause by a process beside it, and its moment is that of the last answer that was not 200 yet.
`read back` is when the supervisor has found the runtime's environment and sockets as planned;
`available` when one health check more was answered through the gateway and judged, resources
are observed and the lifecycle is `ready`. The aim is at most 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import importlib
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from companion_core.paths import InstancePaths
from companion_core.serving import Serving
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
PLUGIN = "companion_runtime_llamacpp"
ROUNDS = 15

OBSERVER = """
import socket, sys, time
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
print(not_yet)
"""


@dataclass(frozen=True)
class Case:
    """One way to become ready; without a model it is the test runtime's."""

    name: str
    spawner: Any
    health: Any = field(default_factory=FakeHealthChecker)
    model: Path | None = None


def silent(plan: Any, _request: Any) -> Any:
    """Plan the same start, without a text that announces it."""
    return replace(plan, ready_text=None)


def cases() -> Iterator[Case]:
    """Name what is timed; llama.cpp where it is installed."""
    for name, channels in (("Unix socket", frozenset({"unix"})), ("TCP", frozenset({"tcp"}))):
        announced = FakeSpawner(("slow",), channels=channels)
        yield Case(f"{name}, announced by a line", announced)
        yield Case(f"{name}, found to accept", replace(announced, alter=silent))
    busy = FakeSpawner(("busy",), alter=silent)
    yield Case("Unix socket, 503 while it loads", busy)
    if importlib.util.find_spec(PLUGIN) is not None:
        plugin = importlib.import_module(f"{PLUGIN}.plugin")
        yield Case(
            "llama.cpp, embedded", plugin.companion_spawn(), plugin.companion_health(), MODEL
        )


class TimedServing:
    """One start of a case on a machine of its own."""

    def __init__(self, case: Case, made: Any) -> None:
        self.read_back = 0.0
        self._case = case
        self._run_dir = InstancePaths(made.folder / "state").run_folder()
        if case.model is None:
            digest = hashlib.sha256(made.program.read_bytes()).hexdigest()
            program: dict[str, Any] = {"binary": str(made.program), "binary_sha256": digest}
        else:
            program = {"modules": frozenset({f"{PLUGIN}.embedded"})}
        self.serving: Serving = make_serving(
            made.folder, spawner=case.spawner, health=case.health, **program
        )
        attach = self.serving.gateway.attach

        def noted(backend: Any) -> None:
            self.read_back = time.monotonic()
            attach(backend)

        # What a start does first once its runtime has been read back.
        setattr(self.serving.gateway, "attach", noted)  # noqa: B010 - a method, for this start

    async def time(self, model: Any) -> tuple[float, float]:
        """Return milliseconds behind the runtime: until read back, and until available."""
        await self.serving.open()
        starting = asyncio.ensure_future(self.serving.start(model))
        try:
            ready = asyncio.ensure_future(self._ready_at())
            await starting
            available = time.monotonic()
            ready_at = await ready
        finally:
            await self.serving.stop()
            await self.serving.gateway.close()
        return (self.read_back - ready_at) * 1e3, (available - ready_at) * 1e3

    async def _ready_at(self) -> float:
        # Folders and files of another program: nothing here tells of them.
        while not (folders := [path for path in self._run_dir.glob("*") if path.is_dir()]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self._case.model is None:
            note = folders[0] / READY_AT
            while not note.exists() or not note.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return float(note.read_text())
        observer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", OBSERVER, str(folders[0] / "backend.sock")),
            stdout=subprocess.PIPE,
        )
        return float((await observer.communicate())[0])


def time_once(case: Case) -> tuple[float, float]:
    """Start a case once, and leave nothing of it."""
    with machine() as made, contextlib.ExitStack() as closing:
        model = made.model
        if case.model is not None:
            model = verified_model(case.model)
            closing.callback(model.close)
        gc.collect()
        return asyncio.run(TimedServing(case, made).time(model))


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print("| ms behind the runtime's own readiness | read back | available |")
    print("|---|---|---|")
    for case in cases():
        columns = zip(*(time_once(case) for _ in range(rounds)), strict=True)
        shown = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            if min(column) > 0
            else "before"
            for column in columns
        ]
        print(f"| {case.name} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
