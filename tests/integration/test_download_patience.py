"""A host that stalls, breaks off or is no longer wanted: given up in time, or resumed."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from download_parts import DATA, PATH, Counted, model_of, refusal, stage

from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.models.byte_pump import Pace
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.providers import DownloadRequest, ResumeRefused
from companion_core.testing.model_host import Misbehaviour, ModelHost

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("after", [0, 1000])
def test_a_host_that_stalls_is_given_up(
    host: ModelHost, store: ModelStore, context: ssl.SSLContext, after: int
) -> None:
    """covers: download_stage/stall"""
    impatient = Counted(HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=0.2))
    host.misbehave = Misbehaviour(stall_after=after, weak_etag=True)
    assert refusal(store, impatient, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert impatient.opened == 3


def test_a_host_that_drips_is_given_up(
    host: ModelHost, tmp_path: Path, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/stall - a byte now and then is never idle, and still too slow."""
    store = ModelStore(
        tmp_path / "models", pace=Pace(block_seconds=0.3), sleep=lambda _seconds: None
    )
    host.misbehave = Misbehaviour(drip_seconds=0.05, weak_etag=True)
    assert refusal(store, downloader, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert len(host.requests) == 3


def test_a_host_that_accepts_and_says_nothing_is_given_up(
    store: ModelStore, context: ssl.SSLContext
) -> None:
    """covers: download_stage/stall"""
    impatient = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}{PATH}"
        assert refusal(store, impatient, url) is Reason.DOWNLOAD_FAILED


def test_a_transfer_that_breaks_is_resumed(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/resume"""
    host.misbehave = Misbehaviour(close_after=1_200_000, times=1)
    assert stage(store, downloader, host.url(PATH)) == DATA
    first, second = (headers for _, headers in host.requests)
    assert "range" not in first
    offset = int(second["range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < offset <= 1_200_000
    assert second["if-range"].startswith('"')


@pytest.mark.parametrize("ranges", ["ignore", "shift"])
def test_a_range_that_is_not_honoured_starts_again(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader, ranges: str
) -> None:
    """covers: download_stage/resume"""
    host.misbehave = Misbehaviour(close_after=1_200_000, times=1, ranges=ranges)
    assert stage(store, downloader, host.url(PATH)) == DATA
    assert ["range" in headers for _, headers in host.requests] == [False, True, False]


def test_resuming_without_a_validator_is_refused(
    host: ModelHost, downloader: HttpsDownloader
) -> None:
    with pytest.raises(ResumeRefused):
        downloader.open(DownloadRequest(url=host.url(PATH), offset=5))
    assert host.requests == []


def test_cancelling_hangs_up_and_leaves_no_model(
    host: ModelHost, tmp_path: Path, context: ssl.SSLContext
) -> None:
    patient = HttpsDownloader(LiveEgress(), lambda: context)
    store = ModelStore(tmp_path / "models")
    host.misbehave = Misbehaviour(stall_after=1_200_000)
    cancelled = threading.Event()

    def cancel_once_under_way() -> None:
        while not host.requests:
            time.sleep(0.01)
        cancelled.set()

    thread = threading.Thread(target=cancel_once_under_way)
    thread.start()
    model, allowed = model_of(host.url(PATH))
    with pytest.raises(CompanionError) as caught:
        store.stage(model, allowed_sources=allowed, download=patient.open, cancelled=cancelled)
    thread.join()
    assert caught.value.reason is Reason.INTERRUPTED
    # A later run may resume these bytes; no file has a name that is run.
    assert {path.suffix for path in (tmp_path / "models").iterdir()} <= {".part", ".resume"}
