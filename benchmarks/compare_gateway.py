"""Measure the gateway beside nginx, in one interleaved run; prints a table.

    python benchmarks/compare_gateway.py [--rounds 5] [--scale 1] [--before CHECKOUT]

Every target stands in front of the same backend and compares token and Host. Quote ratios of one
run: times depend on the machine and its other load. The main measure is the processor time that
the target's own processes spend per request or event, from Linux's schedstat. nginx, and uvloop
with httptools, are measured if they are installed. With `--before` the gateway of another checkout
takes its turns too, and a second table compares the two.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from load import Load

from companion_core.cli.foreground import run_event_loop

HERE = Path(__file__).parent
TOKEN = "benchmark"  # noqa: S105 - made up for the run
WAITING = 500
STANDARD = "gateway, standard library"
FAST = "gateway, uvloop and httptools"
BEFORE = ", before"

JSON = "CPU per JSON request, µs"
PACED = "CPU per paced event, µs"
BACK_TO_BACK = "CPU per event back to back, µs"
EVENTS = "thousand events a second"
ONE_CLIENT = "median of one client, µs"
MEMORY = "PSS after load, MiB"

Row = Mapping[str, Sequence[float]]  # column to the results of each round
# The targets run on the last processor, their backend and their clients on the first.
PROCESSORS = sorted(os.sched_getaffinity(0))

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; tcp_nodelay on;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  map $http_authorization $token_is_right {{ default 0; "Bearer {token}" 1; }}
  map $http_host $host_is_right {{ default 0; "127.0.0.1:{port}" 1; }}
  upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024; client_body_buffer_size 1m;
    location / {{
      if ($host_is_right = 0) {{ return 421; }} if ($token_is_right = 0) {{ return 401; }}
      proxy_pass http://backend; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Authorization "";
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Target:
    """A started proxy."""

    name: str
    port: int
    pid: int

    def processes(self) -> list[int]:
        """Return its process and that one's children."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            return [self.pid, *map(int, children)]
        return [self.pid]

    def cpu_seconds(self) -> float:
        """Return the processor time that it has spent."""
        files = [f for pid in self.processes() for f in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((file / "schedstat").read_text().split()[0]) for file in files) / 1e9

    def pss_kib(self) -> int:
        """Return its share of memory."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total


@contextlib.contextmanager
def start(name: str, command: list[str], port: int) -> Iterator[Target]:
    """Start a proxy on a processor of its own and wait until it listens."""
    os.sched_setaffinity(0, {PROCESSORS[-1]})  # the child and its children inherit it
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            os.sched_setaffinity(0, {PROCESSORS[0]})
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield Target(name, port, process.pid)
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def gateway(port: int, backend: str, loop: str, *more: str, root: Path = HERE.parent) -> list[str]:
    """Return the command of the gateway of a checkout on one of the loops."""
    second = "on" if loop == "uvloop" else "off"
    options = ["--port", str(port), "--backend", backend, "--token", TOKEN, "--loop", loop]
    options += ["--second-parser", second, *more]
    python = ["env", f"PYTHONPATH={root}", sys.executable]
    return [*python, str(root / "benchmarks" / "serve_gateway.py"), *options]


def commands(
    folder: Path, backend: str, before: Path | None
) -> Iterator[tuple[str, list[str], int]]:
    """Yield each target that is installed: name, command, port."""
    if shutil.which("nginx"):
        port = free_port()
        file = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        text = NGINX.format(folder=folder, port=port, token=TOKEN, backend=backend, user=user)
        file.write_text(text, encoding="utf-8")
        yield "nginx", ["nginx", "-p", str(folder), "-c", str(file)], port
    loops = [(STANDARD, "asyncio")]
    if importlib.util.find_spec("uvloop") and importlib.util.find_spec("httptools"):
        loops.append((FAST, "uvloop"))
    for name, loop in loops:
        if before is not None:
            port = free_port()
            yield name + BEFORE, gateway(port, backend, loop, root=before), port
        port = free_port()
        yield name, gateway(port, backend, loop), port


def measure(target: Target, load: Load, units: int) -> tuple[float, Load]:
    """Run a load and return the processor time per unit, in microseconds."""
    before = 0.0

    def connected() -> None:
        nonlocal before
        before = target.cpu_seconds()

    run_event_loop(load.run(connected))
    return (target.cpu_seconds() - before) / units * 1e6, load


def memory_per_waiting(backend: str) -> float:
    """Return how many KiB each request in the queue costs."""
    port = free_port()
    command = gateway(port, backend, "asyncio", "--in-flight", "1", "--queue", str(WAITING))
    with start("queue", command, port) as target, contextlib.ExitStack() as clients:
        request = Load(port, TOKEN, 1, 1, pause_microseconds=-1).request()

        def send() -> None:
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(request)

        send()
        time.sleep(1)
        before = target.pss_kib()
        for _ in range(WAITING):
            send()
        time.sleep(2)
        return (target.pss_kib() - before) / WAITING


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1, help="of the number of requests")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="to compare with")
    options = parser.parse_args()
    before = options.before and options.before.resolve()
    os.sched_setaffinity(0, {PROCESSORS[0]})
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        address = f"unix:{folder}/backend.sock"
        backend = subprocess.Popen([sys.executable, str(HERE / "load.py"), "backend", address])
        running.callback(backend.wait)
        running.callback(backend.terminate)
        while not (folder / "backend.sock").exists():
            time.sleep(0.05)
        targets = [
            running.enter_context(start(name, command, port))
            for name, command, port in commands(folder, address, before)
        ]
        for number in range(options.rounds + 1):
            # Every other round goes backwards, so that no target always follows the same one.
            for target in targets if number % 2 else reversed(targets):
                measured = rows[target.name]
                if number == 0:  # a warm-up that is not counted
                    measured = defaultdict(list)
                run_round(target, measured, options.scale)
        for target in targets:
            rows[target.name][MEMORY].append(target.pss_kib() / 1024)
        waiting = memory_per_waiting(address)
    print_table(rows)
    print_bounds(rows, waiting)
    if before is not None:
        print_change(rows)


def run_round(target: Target, measured: dict[str, list[float]], scale: float) -> None:
    """Measure each load once."""
    count = max(64, int(4000 * scale) // 16 * 16)
    events = max(20, int(100 * scale))
    cpu, _ = measure(target, Load(target.port, TOKEN, 16, count), count)
    measured[JSON].append(cpu)
    cpu, _ = measure(target, Load(target.port, TOKEN, 16, 16, events, 10_000), 16 * events)
    measured[PACED].append(cpu)
    load = Load(target.port, TOKEN, 8, 80, 200)
    cpu, load = measure(target, load, 80 * 200)
    measured[BACK_TO_BACK].append(cpu)
    measured[EVENTS].append(80 * 200 / load.elapsed / 1000)
    _, load = measure(target, Load(target.port, TOKEN, 1, count // 4), count)
    measured[ONE_CLIENT].append(load.median_microseconds)


def times(row: Row, nginx: Row, column: str) -> str:
    """Return the ratio to nginx: the median of the ratios within each round."""
    rounds = zip(row[column], nginx.get(column, ()), strict=False)
    ratios = [one / other for one, other in rounds]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def added(row: Row, nginx: Row, column: str) -> str:
    """Return the difference to nginx: the median of the differences within each round."""
    rounds = zip(row[column], nginx.get(column, ()), strict=False)
    differences = [one - other for one, other in rounds]
    return f"{statistics.median(differences):.0f}" if differences else ""


def median(row: Row, _nginx: Row, column: str) -> str:
    """Return the median of all rounds."""
    return f"{statistics.median(row[column]):.1f}"


def print_change(rows: Mapping[str, Row]) -> None:
    """Print what changed since the other checkout; a ratio is the median of the rounds'."""
    print("\n| | before | now | ratio |\n|---|---|---|---|")
    for name in (STANDARD, FAST):
        if name in rows:
            now, then = rows[name], rows[name + BEFORE]
            for column in now:
                medians = f"{median(then, {}, column)} | {median(now, {}, column)}"
                print(f"| {name}: {column} | {medians} | {times(now, then, column)} |")


# Our targets: the name, must, aim, the comparison, its column, and the targets it is for.
BOUNDS = (
    ("CPU per JSON request, times nginx's", "≤ 1.8", "1.5", times, JSON, (FAST,)),
    ("the same", "≤ 2.4", "2.0", times, JSON, (STANDARD,)),
    ("CPU per paced event, times nginx's", "≤ 1.6", "1.3", times, PACED, (FAST, STANDARD)),
    ("events back to back, times nginx's", "≥ 0.9", "1.0", times, EVENTS, (FAST, STANDARD)),
    ("added median, one client, µs", "≤ 25", "10", added, ONE_CLIENT, (FAST, STANDARD)),
    ("memory after load, MiB", "≤ 30", "20", median, MEMORY, (FAST, STANDARD)),
)


def print_bounds(rows: Mapping[str, Row], waiting: float) -> None:
    """Print our targets beside the results; a cell is empty if nginx is missing."""
    print(f"\n| | must | aim | {FAST} | {STANDARD} |\n|---|---|---|---|---|")
    nginx = rows.get("nginx", {})
    for name, must, aim, compare, column, targets in BOUNDS:
        measured = [
            compare(rows[target], nginx, column) if target in targets and target in rows else ""
            for target in (FAST, STANDARD)
        ]
        print(f"| {name} | {must} | {aim} | {measured[0]} | {measured[1]} |")
    print(f"| memory per waiting request, KiB | ≤ 20 | 8 | | {waiting:.1f} |")


def print_table(rows: Mapping[str, Row]) -> None:
    """Print the medians of all rounds."""
    columns = list(next(iter(rows.values())))
    print("| target | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(median(row, {}, column) for column in columns) + " |")


if __name__ == "__main__":
    main()
