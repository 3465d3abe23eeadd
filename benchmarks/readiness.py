"""Time from a runtime's own readiness until it is served; prints a table of medians.

    python benchmarks/readiness.py [ROUNDS]

Not a test: numbers depend on the machine. A runtime is ready when its socket accepts and its
health path answers 200. The test runtime announces that moment itself. A process beside llama.cpp
asks it twice a millisecond, and the moment is that of the last answer before the first 200. For
Ollama it is the answer that the model is loaded. `read back` is when the supervisor has found
the runtime's environment and sockets as planned; `confirmed` when one more request was answered
through the gateway; `available` when the plugin has judged that answer, resources are observed and
the lifecycle is `ready`. The aim is at most 2 ms.

The first row is the least that could be done: wait for the announcement, send the runtime one
request and read nothing back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from companion_core.config.paths import InstancePaths
from companion_core.runtime.start import prepare, readiness
from companion_core.testing import FakeHealthChecker, FakeSpawner, fake_runtime
from companion_core.testing.fake_runtime import READY

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
try:
    import real_runtimes
    from runtime_parts import machine, verified_model
    from serving_parts import make_serving
finally:
    sys.path.pop(0)

MODEL = ROOT / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
ROUNDS = 15

OBSERVER = """
import socket, sys, time
request = b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
asking, status, not_yet = None, b"", time.monotonic()
while status != b"200":
    try:
        if asking is None:
            asking = socket.socket(socket.AF_UNIX)
            asking.connect(sys.argv[1])
        asking.sendall(request)
        status = asking.recv(4096).split(b" ", 2)[1]
    except (OSError, IndexError):
        asking = None
    if status != b"200":
        not_yet = time.monotonic()
        time.sleep(0.0005)
print(not_yet, flush=True)
time.sleep(60)  # an interpreter that ends would take a processor from the measurement
"""


@dataclass(frozen=True)
class Case:
    """One way to become ready; a case without a model uses the test runtime."""

    name: str
    make: Callable[[Any], Any]
    model: Path | None = None
    prepared: bool = False  # it is ready when it answers the last request of its plan


def silent(plan: Any, _request: Any) -> Any:
    """Return the plan without the text that announces readiness."""
    return replace(plan, ready_text=None)


def with_test_runtime(spawner: FakeSpawner) -> Callable[[Any], Any]:
    """Return a function that makes a gateway in front of the test runtime."""

    def make(made: Any) -> Any:
        digest = hashlib.sha256(made.program.read_bytes()).hexdigest()
        program = {"binary": str(made.program), "binary_sha256": digest}
        return make_serving(made.folder, spawner=spawner, health=FakeHealthChecker(), **program)

    return make


def with_real_runtime(name: str, made: Any) -> Any:
    """Return a gateway in front of llama.cpp or Ollama."""
    return real_runtimes.make_real(name, made.folder)


def cases() -> Iterator[Case]:
    """Yield the cases; real runtimes are included if installed, confined as by default."""
    for name, channels in (("Unix socket", frozenset({"unix"})), ("TCP", frozenset({"tcp"}))):
        announced = FakeSpawner(("slow",), channels=channels)
        yield Case(f"{name}, announced by a line", with_test_runtime(announced))
        found = replace(announced, alter=silent)
        yield Case(f"{name}, found to accept", with_test_runtime(found))
    busy = FakeSpawner(("busy",), alter=silent)
    yield Case("Unix socket, 503 while it loads", with_test_runtime(busy))
    for name in real_runtimes.NAMES:
        if real_runtimes.missing(name) is None:
            yield Case(name, partial(with_real_runtime, name), MODEL, prepared=name == "Ollama")


class TimedServing:
    """One start of a case, with state folders of its own."""

    def __init__(self, case: Case, made: Any) -> None:
        self.read_back = self.prepared = self.answered = 0.0
        self._case = case
        self._paths = InstancePaths(made.folder / "state")
        self.serving = case.make(made)
        supervisor = self.serving._supervisor  # noqa: SLF001 - a probe into it
        started, send = supervisor.start, prepare.send_prepare

        async def noted(spec: Any) -> Any:
            backend = await started(spec)
            self.read_back = time.monotonic()
            return backend

        async def noted_answer(*args: Any, **options: Any) -> None:
            await send(*args, **options)
            self.prepared = time.monotonic()

        health = self.serving._health._probe  # noqa: SLF001 - a probe into it
        asked = health._answer  # noqa: SLF001 - a probe into it

        async def noted_health() -> Any:
            answer = await asked()
            self.answered = time.monotonic()
            return answer

        # Methods are replaced for this start, which mypy refuses as plain assignments.
        replaced = ((health, "_answer", noted_health), (supervisor, "start", noted))
        for owner, name, function in (*replaced, (readiness, "send_prepare", noted_answer)):
            setattr(owner, name, function)

    async def time(self, model: Any) -> tuple[float, ...]:
        """Return milliseconds after the runtime: until read back, confirmed, and available."""
        await self.serving.open()
        starting = asyncio.ensure_future(self.serving.start(model))
        observed = self._case.model is not None and not self._case.prepared
        observer = await self._observer() if observed else None
        try:
            await starting
            available = time.monotonic()
            ready_at = self.prepared
            if observer is not None:
                ready_at = float(await observer.stdout.readline())
        finally:
            if observer is not None:
                observer.kill()
                await observer.wait()
            await self.serving.stop()
            await self.serving.gateway.close()
        if self._case.model is None:  # by now the log holds its last line
            ready_at = announced_at((self._paths.logs / "runtime.log").read_text())
        confirmed = max(self.read_back, self.answered)
        return tuple((at - ready_at) * 1e3 for at in (self.read_back, confirmed, available))

    async def _observer(self) -> Any:
        runs = self._paths.run_folder()
        # Another part makes the folder and sends no event, so this polls.
        while not (folders := [path for path in runs.glob("*") if path.is_dir()]):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", OBSERVER, str(folders[0] / "backend.sock")),
            stdout=subprocess.PIPE,
        )


def announced_at(text: str) -> float:
    """Return when the test runtime says that it was ready."""
    return float(text.partition(READY)[2].split()[0])


async def least(folder: Path) -> float:
    """Return milliseconds from a runtime's readiness until it has answered one request."""
    model, address = folder / "model", folder / "backend.sock"
    model.touch()
    runtime: Any = await asyncio.create_subprocess_exec(
        *(sys.executable, "-IS", fake_runtime.__file__, str(model), str(address), "slow"),
        stdout=subprocess.PIPE,
        cwd=folder,
    )
    try:
        while READY.encode() not in (line := await runtime.stdout.readline()):
            pass
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        answered = time.monotonic()
        writer.close()
    finally:
        runtime.kill()
        await runtime.wait()
    return (answered - announced_at(line.decode())) * 1e3


def time_once(case: Case) -> tuple[float, ...]:
    """Start a case once, then stop it and remove its files."""
    with machine() as made, contextlib.ExitStack() as closing:
        model = made.model
        if case.model is not None:
            # A copy, as staging makes it: only a file's owner may link it.
            model = verified_model(shutil.copyfile(case.model, made.folder / "model.gguf"))
            closing.callback(model.close)
        gc.collect()
        return asyncio.run(TimedServing(case, made).time(model))


def shown(times: Sequence[float]) -> str:
    """Return the median, the minimum and the maximum."""
    median = statistics.median(times)
    return f"{median:.2f} ({min(times):.2f} to {max(times):.2f})" if median > 0 else "before"


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print("| ms after the runtime's own readiness | read back | confirmed | available |")
    print("|---|---|---|---|")
    bare = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            bare.append(asyncio.run(least(Path(folder))))
    print(f"| a line, one request, nothing read back | | {shown(bare)} | |", flush=True)
    for case in cases():
        columns = zip(*(time_once(case) for _ in range(rounds)), strict=True)
        print(f"| {case.name} | {' | '.join(map(shown, columns))} |", flush=True)


if __name__ == "__main__":
    main()
