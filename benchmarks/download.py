"""Download a file over TLS on loopback beside curl, and a gateway's answers meanwhile.

    python benchmarks/download.py [--rounds N] [--mebibytes N] [--near FOLDER]

Prints tables. Not a test: numbers depend on the machine. Every round measures curl, which hashes
nothing, and this project's downloader, whose bytes take the whole way of a model's, in turn.
Processor time is of the process and its children. "times curl's" is the median of the rounds' own
ratios; on a busy machine the least times say more.

Then a gateway answers one request every few milliseconds, without a download and with one in its
own process, as when `companion up` fetches a model while it serves another: over a line of
1 Gbit/s, and as fast as loopback goes. nginx serves the file, and shares the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from compare_gateway import free_port
from download_world import Served, serve_file
from load import ANSWER, Load

HERE = Path(__file__).resolve().parent
TOKEN: Final = "t" * 43
REQUESTS: Final = 1500
PAUSE_SECONDS: Final = 0.003


class Run:
    """One download by a process: its seconds, processor seconds and peak memory in MiB."""

    def __init__(self, command: list[str], target: Path, *, sync: bool) -> None:
        target.unlink(missing_ok=True)
        os.sync()
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None  # noqa: S101 - as asked for
            said = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{command[0]} failed")
        if sync:  # the other has done it
            with target.open("rb") as file:
                os.fsync(file.fileno())
        self.seconds = time.perf_counter() - begun
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        report = json.loads(said) if said else {}
        self.memory_mib: float = report.get("peak_memory_mib", 0.0)
        target.unlink()


def compare(served: Served, rounds: int) -> None:
    """Print the table of downloads."""
    target = served.folder / "out.bin"
    ours = [sys.executable, str(HERE / "download_once.py"), "--url", served.url]
    ours += ["--sha256", served.sha256, "--size", str(served.size)]
    ours += ["--ca", str(served.ca_file), "--dest", str(target)]
    curl = ["curl", "-sS", "--http1.1", "--cacert", str(served.ca_file)]
    curl += ["-o", str(target), served.url]
    runs: dict[str, list[Run]] = {"curl -o, fsync, no hash": [], "companion, proved": []}
    for _ in range(rounds):
        for name, command in zip(runs, (curl, ours), strict=True):
            runs[name].append(Run(command, target, sync=command is curl))
    gigabytes = served.size / 1e9
    first = next(iter(runs.values()))
    print("| | s | least s | GB/s | times curl's speed | CPU-s/GB | times curl's | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, each in runs.items():
        seconds = statistics.median(run.seconds for run in each)
        cpu = statistics.median(run.cpu_seconds for run in each) / gigabytes
        pairs = list(zip(first, each, strict=True))
        speed = statistics.median(base.seconds / run.seconds for base, run in pairs)
        work = statistics.median(run.cpu_seconds / base.cpu_seconds for base, run in pairs)
        least = min(run.seconds for run in each)
        memory = max((run.memory_mib for run in each if run.memory_mib), default="")
        rate = gigabytes / seconds
        row = f"| {name} | {seconds:.2f} | {least:.2f} | {rate:.2f} | {speed:.2f}"
        print(f"{row} | {cpu:.2f} | {work:.2f} | {memory} |", flush=True)


def ask(port: int) -> list[float]:
    """Return how long each of many requests took, in milliseconds, in order of length."""
    request = Load(port, TOKEN, 1, 1).request()
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(REQUESTS):
            time.sleep(PAUSE_SECONDS)
            begun = time.perf_counter()
            connection.sendall(request)
            answer = bytearray()
            while not answer.endswith(ANSWER):
                answer += connection.recv(65536)
            took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)


@contextlib.contextmanager
def start_gateway(
    served: Served, url: str, folder: Path
) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Start a backend and a gateway; what is called with "go" or "stop" has it download."""
    folder.mkdir()
    backend = f"unix:{folder}/backend"
    port = free_port()
    behind = [sys.executable, str(HERE / "load.py"), "backend", backend]
    options = [url, str(served.size), served.sha256, str(served.ca_file), str(folder)]
    before = [sys.executable, str(HERE / "download.py"), "--gateway", str(port), backend, *options]
    with (
        subprocess.Popen(behind) as backend_process,
        subprocess.Popen(
            before, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.stdin is not None  # noqa: S101 - as asked for
            assert process.stdout is not None  # noqa: S101 - as asked for
            process.stdout.readline()

            def tell(word: str) -> None:
                print(word, file=process.stdin, flush=True)
                process.stdout.readline()  # type: ignore[union-attr] # as asked for

            yield port, tell
        finally:
            process.kill()
            backend_process.kill()


def measure_answers(served: Served, rounds: int) -> None:
    """Print how long a gateway's answers take without a download and with one."""
    print("\n| a request every 3 ms | median ms | p99 ms | p99, times without |\n|---|---|---|---|")
    for name, url in (("1 Gbit/s", served.gigabit_url), ("as fast as it goes", served.url)):
        rows: dict[str, list[list[float]]] = {"without": [], f"beside a download, {name}": []}
        with start_gateway(served, url, served.folder / f"gateway{len(url)}") as (port, tell):
            ask(port)
            for _ in range(rounds):
                for row, word in zip(rows, ("stop", "go"), strict=True):
                    tell(word)
                    rows[row].append(ask(port))
        without = rows["without"]
        for row, found in rows.items():
            median = statistics.median(each[len(each) // 2] for each in found)
            p99 = statistics.median(percentile(each) for each in found)
            pairs = zip(without, found, strict=True)
            ratio = statistics.median(percentile(b) / percentile(a) for a, b in pairs)
            print(f"| {row} | {median:.2f} | {p99:.2f} | {ratio:.2f} |", flush=True)


def percentile(took: list[float]) -> float:
    """Return the 99th of a hundred."""
    return took[int(len(took) * 0.99)]


def serve_and_download(port: str, backend: str, url: str, size: str, *more: str) -> None:
    """Serve a gateway, and download over and over between "go" and "stop" on stdin."""
    from download_once import fetch, signed_manifest  # noqa: PLC0415 - in this process alone
    from serve_gateway import serve  # noqa: PLC0415 - in this process alone

    sha256, ca_file, folder = more
    work = Path(folder)
    manifest = signed_manifest(work, url=url, size=int(size), sha256=sha256)
    cancelled = threading.Event()

    def download(ended: threading.Event) -> None:
        with contextlib.suppress(Exception):  # interrupted
            while not ended.is_set():
                fetch(manifest, work / "models", Path(ca_file), ended).unlink()

    def listen() -> None:
        nonlocal cancelled
        worker: threading.Thread | None = None
        for line in sys.stdin:
            cancelled.set()
            if worker is not None:
                worker.join()
                worker = None
            if line.strip() == "go":
                cancelled = threading.Event()
                worker = threading.Thread(target=download, args=(cancelled,), daemon=True)
                worker.start()
                time.sleep(0.5)
            print("done", flush=True)

    threading.Thread(target=listen, daemon=True).start()
    options = argparse.Namespace(
        token=TOKEN,
        model="m",
        port=int(port),
        backend=backend,
        in_flight=64,
        queue=64,
        second_parser="off",
    )
    asyncio.run(serve(options))


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--gateway"]:
        serve_and_download(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--near", type=Path, default=Path("/var/tmp"))  # noqa: S108 - a disk
    options = parser.parse_args()
    with serve_file(options.mebibytes << 20, options.near) as served:
        compare(served, options.rounds)
        measure_answers(served, options.rounds)


if __name__ == "__main__":
    main()
