"""A download that was killed is resumed by another process, from a real TLS host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_parts import wait_until

from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost

pytestmark = pytest.mark.integration

PATH = "/companion/tiny.gguf"
DATA = os.urandom(6_000_000)
STALL = 4_500_000

# Fetches as the companion does, and prints the progress and how it ended.
FETCH = """
import sys
from pathlib import Path
from companion_core.decisions.manifest import verify_manifest
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document
from companion_core.egress.tls_context import build_tls_context

store, ca_file, data, url = sys.argv[1:]
publisher = FakePublisher()
manifest = verify_manifest(
    publisher.envelope(manifest_document(url, Path(data).read_bytes())),
    trusted_keys=[publisher.public_key], now=TEST_NOW, last_seen=None,
)
context = build_tls_context(Path(ca_file))
downloader = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=60)
try:
    verified = ModelStore(Path(store)).stage(
        manifest.models[0], allowed_sources=manifest.allowed_sources, download=downloader.open,
        progress=lambda done, _total: print("received", done, flush=True),
        resumed=lambda done, _total: print("resumed", done, flush=True),
    )
except CompanionError as error:
    print("refused", error.reason)
else:
    verified.close()
    print("verified")
"""


class Place:
    """A host, a store, and processes that fetch from the one into the other."""

    def __init__(self, folder: Path, host: ModelHost, ca_file: Path) -> None:
        self.store = folder / "models"
        self.host = host
        self._data = folder / "signed-for"
        self._data.write_bytes(DATA)
        self._ca_file = ca_file

    @contextlib.contextmanager
    def fetching(self) -> Iterator[subprocess.Popen[str]]:
        argv = [self.store, self._ca_file, self._data, self.host.url(PATH)]
        with subprocess.Popen(
            [sys.executable, "-c", FETCH, *map(str, argv)], stdout=subprocess.PIPE, text=True
        ) as running:
            try:
                yield running
            finally:
                running.kill()

    def fetch(self) -> list[str]:
        """Return the lines that it printed."""
        with self.fetching() as running:
            assert running.stdout is not None
            return running.stdout.read().splitlines()

    def kill_in_the_middle(self, etag: str | None = None) -> int:
        """Kill a process that has received a part (SIGKILL); return how many bytes are kept."""
        self.host.misbehave = Misbehaviour(stall_after=STALL, etag=etag)
        with self.fetching() as running:
            assert running.stdout is not None
            assert running.stdout.readline().startswith("received ")
            running.kill()
            running.wait()
        self.host.misbehave = Misbehaviour()
        kept = self.part.stat().st_size
        assert 0 < kept <= STALL
        assert self.part.read_bytes() == DATA[:kept]
        return kept

    @property
    def part(self) -> Path:
        [part] = self.store.glob(".*.part")
        return part

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.host.requests]

    def expect_the_model_alone(self) -> None:
        [model] = self.store.iterdir()
        assert model.read_bytes() == DATA


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    authority = CertificateAuthority(tmp_path)
    with ModelHost(authority.server_context(), {PATH: DATA}) as host:
        yield Place(tmp_path, host, authority.ca_file)


def test_killed_in_the_middle_and_gone_on_with(place: Place) -> None:
    """covers: download_stage/resume"""
    kept = place.kill_in_the_middle()
    said = place.fetch()
    assert said[:2] == [f"received {kept}", f"resumed {kept}"]
    assert said[-1] == "verified"
    assert place.ranges == [None, f"bytes={kept}-"]
    assert place.host.requests[1][1]["if-range"].startswith('"')
    place.expect_the_model_alone()


def test_killed_again_and_again(place: Place) -> None:
    kept = [place.kill_in_the_middle() for _ in range(3)]
    # The host stalls anew after so many bytes of each answer.
    assert kept == sorted(kept)
    assert place.fetch()[-1] == "verified"
    place.expect_the_model_alone()


def test_the_network_fails_and_the_next_one_goes_on(place: Place) -> None:
    place.host.misbehave = Misbehaviour(close_after=1_500_000)
    said = place.fetch()
    assert said[-1] == "refused download_failed"
    kept = place.part.stat().st_size
    place.host.misbehave = Misbehaviour()
    assert place.fetch()[-1] == "verified"
    assert place.ranges[-1] == f"bytes={kept}-"
    place.expect_the_model_alone()


def test_what_changed_on_the_host_meanwhile_is_not_mixed(place: Place) -> None:
    """The host sends all of another file of the same length, which is not the model."""
    place.kill_in_the_middle()
    place.host.content = {PATH: os.urandom(len(DATA))}
    assert place.fetch()[-1] == "refused digest_mismatch"
    assert [wanted is None for wanted in place.ranges] == [True, False, True]
    assert list(place.store.iterdir()) == []


def test_a_host_that_resumes_whatever_it_has_is_found_out(place: Place) -> None:
    """The host calls other bytes the same: only the hash of the whole shows it."""
    place.kill_in_the_middle(etag='"same"')
    place.host.misbehave = Misbehaviour(etag='"same"')
    place.host.content = {PATH: DATA[:-1] + bytes([DATA[-1] ^ 1])}
    assert place.fetch()[-1] == "refused digest_mismatch"
    assert [wanted is None for wanted in place.ranges] == [True, False, True]
    assert list(place.store.iterdir()) == []


def test_a_part_that_was_tampered_with_is_fetched_anew(place: Place) -> None:
    kept = place.kill_in_the_middle()
    with place.part.open("r+b") as part:
        part.write(bytes([DATA[0] ^ 1]))
    said = place.fetch()
    assert said[-1] == "verified"
    assert place.ranges == [None, f"bytes={kept}-", None]
    place.expect_the_model_alone()


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to], ids=["link", "second-name"])
def test_a_link_in_the_place_of_the_part_is_not_written_through(
    place: Place, tmp_path: Path, make
) -> None:
    place.kill_in_the_middle()
    victim = tmp_path / "victim"
    part = place.part
    part.rename(victim)
    before = victim.read_bytes()
    make(part, victim)
    assert place.fetch()[-1] == "verified"
    assert place.ranges == [None, None]
    assert victim.read_bytes() == before
    place.expect_the_model_alone()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for what is open in /proc")
def test_two_at_once_one_writes_and_the_other_takes_over_when_it_is_killed(place: Place) -> None:
    place.host.misbehave = Misbehaviour(stall_after=STALL)
    with place.fetching() as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("received ")
        with place.fetching() as second:
            assert second.stdout is not None
            assert wait_until(lambda: waits_for_the_store(second, place.store), 60)
            assert place.ranges == [None]
            kept_at_least = place.part.stat().st_size
            place.host.misbehave = Misbehaviour()
            first.kill()
            first.wait()
            said = second.stdout.read().splitlines()
    assert said[-1] == "verified"
    assert place.ranges[0] is None
    [resumed] = [int(line.split()[1]) for line in said if line.startswith("resumed")]
    assert resumed >= kept_at_least
    assert place.ranges[1:] == [f"bytes={resumed}-"]
    place.expect_the_model_alone()


def waits_for_the_store(running: subprocess.Popen[str], store: Path) -> bool:
    """The process has the folder open, which is what it locks."""
    descriptors = Path("/proc", str(running.pid), "fd")
    for each in descriptors.iterdir():
        with contextlib.suppress(OSError):
            if each.readlink() == store:
                return True
    return False
