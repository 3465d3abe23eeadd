"""Download one file with the real downloader and integrity path, and time it.

    python benchmarks/download_once.py --url URL --sha256 HEX --size BYTES --ca FILE --dest PATH

The bytes take the same path as a model's: a manifest signed for this run, its verification, the
store, the descriptor's hash, fsync and rename. One line of JSON says how long it took.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from companion_core.authority.publisher import (
    Measured,
    add_file,
    init_draft,
    parse_lifetime,
    sign_draft,
)
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError
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
        "peak_memory_mib": round(usage.ru_maxrss / 1024, 1),
    }
    print(json.dumps(report))
    return 0


def _download(arguments: argparse.Namespace, work: Path) -> None:
    key_file = work / "key.pem"
    init_draft(work / "manifest", key_file)
    measured = Measured(arguments.size, arguments.sha256)
    add_file(work / "manifest", measured, model_id="once", url=arguments.url, model_format="gguf")
    signed = sign_draft(
        work / "manifest",
        key_file,
        lifetime=parse_lifetime("1h"),
        now=dt.datetime.now(tz=dt.UTC),
    )
    context = build_tls_context(arguments.ca)
    downloader = HttpsDownloader(LiveEgress(), lambda: context)
    verified = ModelStore(work / "models").stage(
        signed.manifest.models[0],
        allowed_sources=signed.manifest.allowed_sources,
        download=downloader.open,
    )
    try:
        Path(verified.files[0].path).replace(arguments.dest)
    finally:
        verified.close()


if __name__ == "__main__":
    sys.exit(main())
