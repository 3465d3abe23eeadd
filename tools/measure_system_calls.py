"""Measure which system calls the runtimes make, and compare them with the list that is enforced.

    python tools/measure_system_calls.py [--tier TIER] [RUNTIME ...]

Each runtime is started through the gateway as a person's would be, is asked (whole answers,
streams, a cancelled one, embeddings) and is stopped, with strace on its keeper. What counts is
what the runtime and all below it did from their first execve(2) on. Printed are

* calls that are made and not on the list: exit code 1;
* calls that the filter refused (with `--tier bubblewrap` or `landlock` the filter is in force);
* entries of the list that say "measured" and that no runtime made;
* what was asked of the calls whose arguments are looked at.

Needs strace. A runtime that is not on this machine is named and left out; COMPANION_TEST_OLLAMA
and COMPANION_TEST_LLAMA_SERVER name two of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from companion_core.cli.plugin_template import write_plugin
from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.runtime.isolation.system_calls import ALLOWED
from companion_core.testing import FakeHealthChecker, FakeSpawner, write_fake_runtime

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
try:
    import real_runtimes
    import serving_parts
    from runtime_parts import verified_model
finally:
    sys.path.pop(0)

MODEL: Final = ROOT / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
STRACE: Final = shutil.which("strace") or ""

# What a server written in Python does beside answering: threads, workers, temporary files.
PYTHON_AT_LARGE: Final = """
    import asyncio, concurrent.futures, mmap, multiprocessing, shutil, sqlite3, tempfile
    import logging.handlers, queue, random, select, uuid
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(hash, range(16)))
    for method in ("fork", "spawn"):
        worker = multiprocessing.get_context(method).Process(target=abs, args=(1,))
        worker.start()
        worker.join()
    try:  # locks between processes lie in /dev/shm, which Landlock does not open
        with concurrent.futures.ProcessPoolExecutor(
            2, multiprocessing.get_context("fork")
        ) as pool:
            list(pool.map(abs, range(8)))
    except PermissionError:
        pass
    subprocess.run(["/bin/echo", "x"], stdout=subprocess.PIPE, check=True)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        place = Path(folder, "x")
        place.write_bytes(b"x" * 8192)
        with place.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0] = 1
            mapped.flush()
        os.truncate(place, 100)
        os.fsync(os.open(place, os.O_RDONLY))
        place.rename(place.with_name("y"))
        os.symlink("y", place)
        shutil.copyfile(place, place.with_name("z"))
        list(os.walk(folder))
        database = sqlite3.connect(place.with_name("db"))
        database.execute("create table t (a)")
        database.commit()
        database.close()
    async def served():
        server = await asyncio.start_unix_server(lambda r, w: w.close(), path="x.sock")
        async with server:
            try:  # Landlock lets nobody connect, not even to themselves
                reader, writer = await asyncio.open_unix_connection("x.sock")
                await reader.read()
                writer.close()
            except PermissionError:
                pass
        await asyncio.to_thread(abs, 1)
        process = await asyncio.create_subprocess_exec("/bin/echo", "x")
        await process.wait()
    asyncio.run(served())
    os.cpu_count(); os.sched_getaffinity(0); os.getloadavg(); os.nice(0); uuid.uuid4()
    os.get_terminal_size if not sys.stdout.isatty() else 0
    import platform, resource
    platform.uname(); resource.getrusage(resource.RUSAGE_SELF)
    resource.getrlimit(resource.RLIMIT_NOFILE)
"""


class TracingEgress(LiveEgress):
    """The doorway, with strace on each keeper that goes through it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.traces: list[Path] = []

    def start_process(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """See `Egress`; strace runs beside the keeper, which stays the child."""
        if any(Path(part).name == "keeper.py" for part in argv):
            trace = self._folder / f"trace-{len(self.traces)}"
            self.traces.append(trace)
            argv = (
                STRACE,
                "-DD",
                "-f",
                "--pidns-translation",
                "-qq",
                "-s",
                "40",
                "-o",
                str(trace),
                *argv,
            )
        return super().start_process(argv, **options)


# A line of strace: a call, or the rest of one that was interrupted by another process's.
_CALL: Final = re.compile(r"(\d+)(?:<[^>]*>)? +(\w+)\((.*)")
_REST: Final = re.compile(r"(\d+)(?:<[^>]*>)? +<\.\.\. (\w+) resumed>(.*)")
_RESULT: Final = re.compile(r"= (-?\d+)(?: (E\w+))?[^=]*$")
_OUTSIDE: Final = re.compile(r"/\* (\d+) in strace's PID NS \*/")
_MAKES_PROCESSES: Final = frozenset({"fork", "vfork", "clone", "clone3"})


class Trace:
    """What one traced keeper's runtime did.

    Attributes:
        calls: how often each was made.
        refused: calls that ended in EPERM, with their arguments.
        looked_at: for the calls in `LOOKED_AT`, what they were asked.
    """

    def __init__(self, path: Path) -> None:
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.looked_at: dict[str, Counter[str]] = defaultdict(Counter)
        self._inside: set[str] = set()
        self._below_keeper: set[str] = set()
        self._unfinished: dict[tuple[str, str], str] = {}
        keeper = ""
        for line in path.read_text(errors="replace").splitlines():
            if found := _CALL.match(line):
                process, name, rest = found.groups()
                keeper = keeper or process
                if rest.endswith("<unfinished ...>"):
                    self._unfinished[process, name] = rest.removesuffix("<unfinished ...>")
                    self._begun(process, name, rest)
                    continue
            elif found := _REST.match(line):
                process, name, rest = found.groups()
                rest = self._unfinished.pop((process, name), "") + rest
            else:
                continue
            self._take(process, name, rest, keeper)

    def _begun(self, process: str, name: str, rest: str) -> None:
        """Count what ends the process that makes it: there is no rest of it."""
        if name in {"exit", "exit_group"} and process in self._inside:
            self._count(name, rest, "")

    def _take(self, process: str, name: str, rest: str, keeper: str) -> None:
        result = _RESULT.search(rest)
        value, error = result.groups() if result else ("", None)
        if name in _MAKES_PROCESSES and value.isdigit() and value != "0":
            if other := _OUTSIDE.search(rest):  # it is a number in a namespace
                value = other[1]
            if process in self._inside:
                self._inside.add(value)
            elif process == keeper or process in self._below_keeper:
                self._below_keeper.add(value)
        # bubblewrap and the broker execute before the runtime: the last execve(2) of a process
        # that is not yet inside begins it, and what it made before is not counted.
        begun = name == "execve" and process in self._below_keeper and error is None
        if begun and not any(part in rest for part in ("bwrap", "broker.py")):
            self._inside.add(process)
        if process in self._inside:
            self._count(name, rest, error or "")

    def _count(self, name: str, rest: str, error: str) -> None:
        self.calls[name] += 1
        asked = _asked(name, rest)
        known = ALLOWED.get(name)
        if error == "EPERM" and (known is None or known.answer != "allow"):
            self.refused[re.sub(r"\d+", "N", f"{name}({rest[:90]}")] += 1
        if asked:
            self.looked_at[name][asked] += 1


def _asked(name: str, rest: str) -> str:
    """Return what was asked of a call whose arguments are looked at."""
    parts = rest.split(")", 1)[0].split(", ")
    try:
        match name:
            case "socket" | "socketpair":
                return ", ".join(parts[:3])
            case "fcntl" | "ioctl":
                return parts[1]
            case "prctl" | "personality" | "arch_prctl":
                return parts[0]
            case "clone":
                return next((part for part in parts if part.startswith("flags")), "")
            case "prlimit64":
                return re.sub(r"\d+", "N", ", ".join(parts[:3])).replace("{rlim", "NEW")
            case "kill" | "tgkill" | "tkill" | "pidfd_send_signal":
                return parts[-1]
            case "sendto":
                return ", ".join(rest.rsplit(")", 1)[0].rsplit(", ", 3)[1:])
            case "sendmsg":
                return parts[1][:40] + " … " + parts[-1]
            case "chmod" | "fchmod" | "fchmodat" | "chown" | "fchown" | "utimensat":
                return rest[:60]
            case "memfd_create" | "shmget" | "sched_setaffinity" | "setpriority" | "mbind":
                return rest[:60]
    except IndexError:
        pass
    return ""


async def ask(serving: Any) -> None:
    """Ask what people ask: whole, streamed, cancelled, embeddings, something malformed."""
    for fields in ({}, {"max_tokens": 16, "temperature": 0.7}, {"messages": "no"}):
        await serving_parts.chat(serving, **fields)
    await asyncio.gather(*(serving_parts.chat(serving, max_tokens=12) for _ in range(3)))
    await asyncio.to_thread(_stream, serving.gateway.port, whole=True)
    await asyncio.to_thread(_stream, serving.gateway.port, whole=False)
    body = {"model": "tiny", "input": "text"}
    with contextlib.suppress(ValueError):  # some answer with no JSON document here
        await serving_parts.post(serving, "/v1/embeddings", body)
    await asyncio.sleep(0.5)


def _stream(port: int, *, whole: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {
        "Authorization": f"Bearer {serving_parts.TOKEN}",
        "Content-Type": "application/json",
    }
    message = {"role": "user", "content": "Hello"}
    body = {"model": "tiny", "messages": [message], "max_tokens": 64, "stream": True}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read() if whole else answer.read(16)


Make = Callable[[Path, Tier], Any]


def runtimes() -> Iterator[tuple[str, str | None, Make]]:
    """Yield each runtime's name, what is missing of it, and what makes a gateway to it."""
    for name in real_runtimes.NAMES:
        yield name, real_runtimes.missing(name), partial(_real, name)
    program = os.environ.get("COMPANION_TEST_LLAMA_SERVER", "")
    yield "llama-server", None if program else "its program", partial(_llama_server, program)
    yield "test runtime", None, partial(_test_runtime, "", "unix")
    yield "test runtime, TCP", None, partial(_test_runtime, "", "tcp")
    yield "Python at large", None, partial(_test_runtime, PYTHON_AT_LARGE, "unix")
    yield "plugin template", None, _template


def _real(name: str, folder: Path, tier: Tier) -> Any:
    # Ollama has no key, so without a network of its own it is started only if that is accepted.
    return real_runtimes.make_real(name, folder, tier=tier, unsafe_open_backend=True)


def _llama_server(program: str, folder: Path, tier: Tier) -> Any:
    plugin = importlib.import_module("companion_runtime_llamacpp.plugin")
    return serving_parts.make_serving(
        folder,
        spawner=plugin.companion_spawn(),
        health=plugin.companion_health(),
        tier=tier,
        options={"gpu_layers": 0},
        **_program(Path(program)),
    )


def _test_runtime(added: str, channel: str, folder: Path, tier: Tier) -> Any:
    program = write_fake_runtime(folder / "runtime")
    text, start = program.read_text(), '    print("started"'
    program.write_text(text.replace(start, added + start, 1))
    spawner = FakeSpawner(channels=frozenset({channel}))
    return serving_parts.make_serving(
        folder, spawner=spawner, health=FakeHealthChecker(), tier=tier, **_program(program)
    )


def _template(folder: Path, tier: Tier) -> Any:
    """Make a gateway to the server that `companion plugins new runtime` writes."""
    made, _ = write_plugin("runtime", "measured", folder / "made")
    server = (made / "companion_runtime_measured" / "server.py").read_text()
    program = folder / "runtime"
    program.write_text(f"#!{sys.executable} -IS\n{server}")
    program.chmod(0o755)

    def alter(plan: Any, _request: Any) -> Any:
        argv = (*plan.argv[:3], json.dumps({"alias": "tiny"}))
        return replace(plan, argv=argv, ready_text="companion-runtime-measured: listening")

    spawner = FakeSpawner(channels=frozenset({"unix"}), alter=alter)
    return serving_parts.make_serving(
        folder, spawner=spawner, health=FakeHealthChecker(), tier=tier, **_program(program)
    )


def _program(program: Path) -> dict[str, Any]:
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    return {"binary": str(program), "binary_sha256": digest}


def measure(make: Make, folder: Path, tier: Tier) -> list[Trace]:
    """Run one runtime from its start to its end, and return what it did."""
    egress = TracingEgress(folder)

    async def life() -> None:
        serving = make(folder, tier)
        serving._supervisor._egress = egress  # noqa: SLF001 - the tool stands in the doorway
        async with serving_parts.serving_with(serving, model):
            await ask(serving)

    copied = shutil.copyfile(MODEL, folder / "model.gguf")
    model = verified_model(copied)
    try:
        asyncio.run(life())
    finally:
        model.close()
    return [Trace(path) for path in egress.traces]


def report(found: Mapping[str, list[Trace]]) -> int:
    """Print what was found; return how many calls are made and not on the list."""
    made: dict[str, set[str]] = defaultdict(set)
    refused: Counter[str] = Counter()
    looked_at: dict[str, Counter[str]] = defaultdict(Counter)
    for name, traces in found.items():
        for trace in traces:
            for call in trace.calls:
                made[call].add(name)
            refused.update({f"{name}: {text}": count for text, count in trace.refused.items()})
            for call, asked in trace.looked_at.items():
                looked_at[call].update(asked)
    print("made:")
    for call, names in sorted(made.items()):
        print(f"  {call}: {', '.join(sorted(names))}")
    print("arguments that are looked at:")
    for call, asked in sorted(looked_at.items()):
        for text, count in asked.most_common(25):
            print(f"  {call}: {text}  ({count})")
    print("ended in EPERM:")
    for text, count in refused.most_common(40):
        print(f"  {text}  ({count})")
    unknown = sorted(set(made) - set(ALLOWED))
    print("not on the list:", ", ".join(unknown) or "nothing")
    idle = sorted(name for name, entry in ALLOWED.items() if entry.measured and name not in made)
    print("on the list as measured, and made by none of these runtimes:", ", ".join(idle) or "none")
    return len(unknown)


def main() -> None:
    """Measure the runtimes that are asked for, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tier", type=Tier, default=Tier.NONE)
    parser.add_argument("runtimes", nargs="*")
    asked = parser.parse_args()
    if not STRACE:
        sys.exit("strace is not installed")
    found: dict[str, list[Trace]] = {}
    with tempfile.TemporaryDirectory(prefix="cc-") as outer:
        for number, (name, absent, make) in enumerate(runtimes()):
            if asked.runtimes and name not in asked.runtimes:
                continue
            if absent is not None:
                print(f"{name}: left out, {absent} is missing")
                continue
            folder = Path(outer, str(number))
            folder.mkdir()
            found[name] = measure(make, folder, asked.tier)
            print(f"{name}: measured", flush=True)
    sys.exit(1 if report(found) else 0)


if __name__ == "__main__":
    main()
