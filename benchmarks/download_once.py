"""Download one file with the real downloader and integrity path, and time it.

    python benchmarks/download_once.py --url URL --sha256 HEX --size BYTES --ca FILE --dest PATH

The bytes take the same path as a model's: a manifest signed for this run, its verification, the
store, the descriptor's hash, fsync and rename. One line of JSON says how long it took.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from companion_core.decisions.manifest import Manifest, verify_manifest
from companion_core.decisions.verdict import Verdict
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, error_for
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore


def main() -> int:
    """Run as told and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--size", required=True, type=int)
    parser.add_argument("--ca", required=True, type=Path)
    parser.add_argument("--dest", required=True, type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    work = Path(tempfile.mkdtemp(prefix=".download-", dir=arguments.dest.absolute().parent))
    try:
        _download(arguments, work)
    except CompanionError as error:
        print(f"companion: {error.reason.value}: {error.advice}", file=sys.stderr)
        return error.exit_code
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "seconds": round(seconds, 3),
        "gigabytes_per_second": round(arguments.size / seconds / 1e9, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_memory_mib": round(_peak_memory_kib() / 1024, 1),
    }
    print(json.dumps(report))
    return 0


def _peak_memory_kib() -> int:
    """Return the most memory that this program had; `getrusage` counts what started it as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _download(arguments: argparse.Namespace, work: Path) -> None:
    manifest = signed_manifest(
        work, url=arguments.url, size=arguments.size, sha256=arguments.sha256
    )
    fetch(manifest, work / "models", arguments.ca).replace(arguments.dest)


def fetch(
    manifest: Manifest, store: Path, ca_file: Path, cancelled: threading.Event | None = None
) -> Path:
    """Fetch the one model of a manifest as a companion does; return where it is stored."""
    context = build_tls_context(ca_file)
    downloader = HttpsDownloader(LiveEgress(), lambda: context)
    verified = ModelStore(store).stage(
        manifest.models[0],
        allowed_sources=manifest.allowed_sources,
        download=downloader.open,
        cancelled=cancelled,
    )
    try:
        return Path(verified.files[0].path)
    finally:
        verified.close()


def signed_manifest(
    work: Path, *, url: str, size: int, sha256: str, pieces: bytes = b""
) -> Manifest:
    """Sign a manifest with one file, and return what a reader makes of it.

    A process of its own signs: the one that is measured is a reader's.
    """
    child = os.fork()
    if child == 0:
        _sign(work, url, size, sha256, pieces)
        os._exit(0)
    os.waitpid(child, 0)
    manifest = verify_manifest(
        (work / "manifest" / "manifest.json").read_bytes(),
        trusted_keys=[(work / "key.txt").read_text()],
        now=time.time(),
        last_seen=None,
    )
    if isinstance(manifest, Verdict):
        raise error_for(manifest.reason)
    return manifest


def _sign(work: Path, url: str, size: int, sha256: str, pieces: bytes) -> None:
    from companion_core.authority.publisher import (  # noqa: PLC0415 - in the child alone
        Measured,
        add_file,
        init_draft,
        parse_lifetime,
        sign_draft,
    )

    folder, key_file = work / "manifest", work / "key.pem"
    (work / "key.txt").write_text(init_draft(folder, key_file))
    measured = Measured(size, sha256, pieces)
    add_file(folder, measured, model_id="once", url=url, model_format="gguf")
    now = dt.datetime.now(tz=dt.UTC)
    sign_draft(folder, key_file, lifetime=parse_lifetime("1h"), now=now)


if __name__ == "__main__":
    sys.exit(main())
