"""How long `companion up` takes with a staged model, over the runtime's own start.

    python benchmarks/start.py [--rounds N] [--model FILE]

Not a test: numbers depend on the machine. By hand is the same llama.cpp with the same model and its
own defaults, from the start of its process until its health path answers 200; `up --detach` is
timed from the start of its process until it ends, which it does once the model is available. They
take turns, with every file in the page cache. The difference should be at most 300 ms; the aim is
150. The rows of processor time say what the companion's own processes have used by then, which
depends less on what else the machine does; the further rows are what one step of `up` took, as it
tells the steps itself: from the step before, or from the start of its process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil
from own_machine import ENVIRONMENT, Machine, by_hand, machine, model_file

_ROUNDS: Final = 11
_SECONDS: Final = 120


def steps_of(made: Machine) -> tuple[dict[str, float], float]:
    """Start in the foreground.

    Returns:
        when each step was told, in seconds from the start, and the seconds of processor time that
        the companion itself had used when it was available.
    """
    reading, writing = os.pipe()
    began = time.perf_counter()
    process = subprocess.Popen(
        made.argv("up", "--announce-fd", str(writing)),
        pass_fds=[writing],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    os.close(writing)
    told: dict[str, float] = {}
    used = 0.0
    with os.fdopen(reading, encoding="utf-8") as pipe:
        for line in pipe:
            now, message = time.perf_counter() - began, json.loads(line)
            name = message["step"]["name"] if "step" in message else "told"
            if "error" in message:
                raise SystemExit(f"it does not start: {message}")
            if name == "told":
                times = psutil.Process(process.pid).cpu_times()
                used = times.user + times.system
            told.setdefault(name, now)
    made.down()
    process.wait(_SECONDS)
    return told, used


def used_by_children() -> float:
    """Return the processor time of this program's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def between(told: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Yield each step with the seconds since the one before."""
    last = 0.0
    for name, at in told.items():
        yield name, at - last
        last = at


def shown(seconds: Sequence[float]) -> str:
    """Return median, least and most in milliseconds."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle * 1e3:.0f} ({low * 1e3:.0f} to {high * 1e3:.0f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--model", type=Path, default=model_file())
    chosen = parser.parse_args()
    alone, up, over = [], [], []
    waits, serves = [], []
    steps: dict[str, list[float]] = {}
    with machine(chosen.model) as made:
        for number in range(chosen.rounds + 1):
            with by_hand(chosen.model) as (_, by_itself):
                pass
            before = used_by_children()
            _, seconds = made.up()
            waited = used_by_children() - before
            made.down()
            told, used = steps_of(made)
            if not number:  # it filled the caches
                continue
            alone.append(by_itself)
            up.append(seconds)
            over.append(seconds - by_itself)
            waits.append(waited)
            serves.append(used)
            for name, taken in between(told):
                steps.setdefault(name, []).append(taken)
    print(f"| {chosen.model.name}, {chosen.model.stat().st_size / 1e6:.1f} MB | ms |")
    print("|---|---|")
    print(f"| llama.cpp started by hand | {shown(alone)} |")
    print(f"| `companion up --detach` | {shown(up)} |")
    print(f"| **over the runtime's own start** | **{shown(over)}** |")
    print(f"| processor time of what serves | {shown(serves)} |")
    print(f"| processor time of what waits for it | {shown(waits)} |")
    for name, times in steps.items():
        print(f"| up to the step `{name}` | {shown(times)} |")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
