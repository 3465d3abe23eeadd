"""Time the scan for plugins in a folder of many distributions; prints a table of medians.

    python benchmarks/plugins.py

Not a test: numbers depend on the machine. The aim is at most 3 ms for 150 distributions once
the folder is known. The time that `importlib.metadata` takes is printed for comparison.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from companion_core.plugin_host import scan, survey_plugins

ROUNDS, DISTRIBUTIONS = 31, 150
LONG_AGO = 1_600_000_000


def fill(site: Path, *, plugins: int) -> None:
    """Install many distributions, some of which declare a plugin."""
    for number in range(DISTRIBUTIONS):
        name = f"other_{number}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        group = "companion.runtime.v1" if number < plugins else "console_scripts"
        (info / "entry_points.txt").write_text(f"[{group}]\np{number} = {name}\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/RECORD,,\n")
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("")
    os.utime(site, (LONG_AGO, LONG_AGO))


def median_milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of one call."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds) * 1e3


def main() -> None:
    """Measure and print."""
    for plugins in (0, 5):
        with tempfile.TemporaryDirectory() as folder:
            site = Path(folder)
            fill(site, plugins=plugins)
            path = [folder]

            def afresh(path: list[str] = path) -> object:
                scan.forget()
                return survey_plugins(path=path)

            def library(path: list[str] = path) -> object:
                found = importlib.metadata.distributions(path=path)
                return [(d.metadata["Name"], d.read_text("entry_points.txt")) for d in found]

            rows: tuple[tuple[str, Callable[[], object]], ...] = (
                ("survey, the folder known", functools.partial(survey_plugins, path=path)),
                ("survey, the folder read again", afresh),
                ("importlib.metadata, the names alone", library),
            )
            for name, call in rows:
                shown = f"{DISTRIBUTIONS} distributions, {plugins} plugins: {name}"
                print(f"{shown:72} {median_milliseconds(call):7.2f} ms")


if __name__ == "__main__":
    main()
