"""Prove a staged file by its pieces on all cores, beside one SHA-256 of it; prints a table.

    python benchmarks/proof.py [--rounds N] [--mebibytes N] [--near FOLDER]

Not a test: numbers depend on the machine. The file is in the system's cache for each of them, so
that no disk is measured. "a later start" is what `ModelStore.stage` takes for a file that is in
the store; each round compares it with one SHA-256 of the same file just before.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from download_once import signed_manifest
from download_world import make_file

from companion_core.authority.publisher import measure
from companion_core.models.store import ModelStore

URL = "https://models.example.org/companion/m.gguf"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mebibytes", type=int, default=4096)
    parser.add_argument("--near", type=Path, default=Path("/var/tmp"))  # noqa: S108 - a disk
    options = parser.parse_args()
    size = options.mebibytes << 20
    with tempfile.TemporaryDirectory(prefix="bench-proof-", dir=options.near) as work:
        folder = Path(work)
        (folder / "models").mkdir(mode=0o700)
        made = folder / "m.bin"
        sha256 = make_file(made, size)
        with made.open("rb", buffering=0) as file:
            pieces = measure(file.readinto).pieces
        stored = folder / "models" / sha256
        made.rename(stored)
        stored.chmod(0o400)
        ways = {
            "one SHA-256 of the whole": lambda: hash_once(stored),
            "a later start, by pieces": stager(folder / "by-pieces", stored, size, pieces),
            "a later start, without pieces": stager(folder / "whole", stored, size, b""),
        }
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                begun, worked = time.perf_counter(), time.process_time()
                run()
                now, done = time.perf_counter(), time.process_time()
                took[way].append((now - begun, done - worked))
    first = next(iter(took.values()))
    print("| | s | least s | GB/s | times one SHA-256 | processor time, times one SHA-256 |")
    print("|---|---|---|---|---|---|")
    for name, found in took.items():
        seconds = [each for each, _ in found]
        median = statistics.median(seconds)
        pairs = list(zip(first, found, strict=True))
        ratio, spent = (statistics.median(b[at] / a[at] for a, b in pairs) for at in (0, 1))
        rate = size / median / 1e9
        line = f"| {name} | {median:.2f} | {min(seconds):.2f} | {rate:.2f}"
        print(f"{line} | {ratio:.2f} | {spent:.2f} |")


def hash_once(path: Path) -> None:
    """Hash a file as `hashlib` does it fastest."""
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def stager(work: Path, stored: Path, size: int, pieces: bytes) -> Callable[[], None]:
    """Return what proves the stored file as a start does."""
    work.mkdir()
    manifest = signed_manifest(work, url=URL, size=size, sha256=stored.name, pieces=pieces)

    def never(_request: object) -> None:
        raise AssertionError("it is stored")

    def run() -> None:
        ModelStore(stored.parent).stage(
            manifest.models[0],
            allowed_sources=manifest.allowed_sources,
            download=never,  # type: ignore[arg-type] # it is never called
        ).close()

    return run


if __name__ == "__main__":
    main()
