"""Random schedules of a download from an evil host, with kills and damage between its runs.

A process with the companion imported forks one child for each run, so that a run costs
milliseconds. It is killed (SIGKILL) after a time that the seed chose, or ends by itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from companion_core.testing.evil_host import EvilHost
from companion_core.testing.publisher import FakePublisher, manifest_document

PATHS = ("/companion/tiny.gguf", "/companion/mirror.gguf")
PIECE = 1 << 20
MOST_SECONDS = 3.0
DATA = hashlib.shake_128(b"schedules").digest(4 * PIECE + PIECE // 3)
SHA256 = hashlib.sha256(DATA).hexdigest()

FORKER = """
import json, os, signal, sys
from pathlib import Path
from companion_core.decisions.manifest import verify_manifest
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError
from companion_core.models.byte_pump import Pace, Spread
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.testing.publisher import TEST_NOW

context = build_tls_context(Path(sys.argv[1]))

def fetch(asked):
    manifest = verify_manifest(
        asked["envelope"].encode(), trusted_keys=[asked["key"]], now=TEST_NOW, last_seen=None
    )
    pace = Pace(
        open_seconds=5, block_seconds=5, spread=Spread(look_seconds=0.01, least_bytes=100_000)
    )
    downloader = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=asked["idle"])
    store = ModelStore(Path(asked["store"]), pace=pace, sleep=lambda _seconds: None)
    try:
        store.stage(
            manifest.models[0],
            allowed_sources=manifest.allowed_sources,
            download=downloader.open,
        ).close()
    except CompanionError as error:
        return error.reason.value
    return "ok"

for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, fetch(json.loads(line)).encode())
        os._exit(0)
    os.close(write)
    print(child, flush=True)
    said = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(child, 0)
    print(said or "killed", flush=True)
"""


class Schedules:
    """Runs schedules one after the other, each in an empty store.

    Args:
        folder: for the store.
        host: evil, and running.
        ca_file: of the host's authority.
    """

    def __init__(self, folder: Path, host: EvilHost, ca_file: Path) -> None:
        self.store = folder / "models"
        self.host = host
        self._ended: Counter[str] = Counter()
        self._spoiled: set[str] = set()  # what this file itself made of a stored one
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER, str(ca_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process that forks."""
        self._forker.kill()
        self._forker.communicate()

    def run(self, seed: int) -> Counter[str]:
        """Run one schedule, and count how its runs ended.

        Raises:
            AssertionError: something unverified had the name of a model, or a good host's file
                was not had in the end.
        """
        choice = random.Random(seed)  # noqa: S311 - to be repeated, and no secret
        self.host.reseed(seed)
        self._spoiled.clear()
        self._ended.clear()
        shutil.rmtree(self.store, ignore_errors=True)
        envelope, key = self._envelope(choice)
        self.host.is_evil = True
        for _ in range(choice.randrange(1, 6)):
            # Some end by themselves: more bytes than there are never come.
            self._fetch(envelope, key, kill_at=choice.randrange(int(1.5 * len(DATA))))
            self._damage(choice)
        self.host.is_evil = False
        said = self._fetch(envelope, key, kill_at=None)
        assert said == "ok", f"with a good host: {said}"
        assert [path.name for path in self.store.iterdir()] == [SHA256]
        assert (self.store / SHA256).read_bytes() == DATA
        return self._ended

    def _envelope(self, choice: random.Random) -> tuple[str, str]:
        publisher = FakePublisher()
        urls = [self.host.url(path) for path in PATHS[: choice.randrange(1, 3)]]
        document = manifest_document(urls[0], DATA)
        [file] = document["models"][0]["files"]
        file["urls"] = urls
        if choice.random() < 0.5:
            cuts = range(0, len(DATA), PIECE)
            digests = b"".join(hashlib.sha256(DATA[at : at + PIECE]).digest() for at in cuts)
            file["pieces"] = {"size": PIECE, "sha256": base64.b64encode(digests).decode()}
        return publisher.envelope(document).decode(), publisher.public_key

    def _fetch(self, envelope: str, key: str, *, kill_at: int | None) -> str:
        asked = {"envelope": envelope, "key": key, "store": str(self.store), "idle": 5.0}
        if kill_at is not None:
            asked["idle"] = 0.1
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(json.dumps(asked) + "\n")
        self._forker.stdin.flush()
        child = int(self._forker.stdout.readline())
        if kill_at is not None:
            deadline = time.monotonic() + MOST_SECONDS
            while time.monotonic() < deadline and psutil.pid_exists(child):
                self._require_nothing_unverified()
                if self._received() >= kill_at:
                    break
                time.sleep(0.002)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        said = self._forker.stdout.readline().strip()
        self._require_nothing_unverified()
        assert said != "ok" or digest_of(self.store / SHA256) == SHA256
        self._ended[said] += 1
        return said

    def _require_nothing_unverified(self) -> None:
        for path in self._stored():
            with contextlib.suppress(FileNotFoundError):  # a repair took its name away
                assert digest_of(path) in {path.name, *self._spoiled}

    def _received(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.store / f".{SHA256}.part").stat().st_size
        return 0

    def _stored(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from (path for path in self.store.iterdir() if not path.name.startswith("."))

    def _damage(self, choice: random.Random) -> None:
        """Change what a run left, now and then, as a failing disk would."""
        with contextlib.suppress(FileNotFoundError):
            parts = [path for path in self.store.iterdir() if path.name.endswith(".part")]
            if parts and choice.random() < 0.3:
                spoil(parts[0], choice)
        for path in list(self._stored()):
            if choice.random() < 0.5:
                spoil(path, choice)
                self._spoiled.add(digest_of(path))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def spoil(path: Path, choice: random.Random) -> None:
    """Change a byte, cut some off, or add some."""
    path.chmod(0o600)
    size = path.stat().st_size
    with path.open("r+b") as file:
        match choice.randrange(3):
            case 0 if size:
                file.seek(choice.randrange(size))
                file.write(b"?")
            case 1:
                file.truncate(choice.randrange(size + 1))
            case _:
                file.seek(0, os.SEEK_END)
                file.write(b"more")
