"""Further connections: tried where each is slow, given up where they do not pay, never trusted."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staging_parts import Body, model_of, names, stage

from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models.byte_pump import Pace, Spread
from companion_core.models.kept_parts import read_record, received, record_of
from companion_core.models.store import ModelStore
from companion_core.providers import DownloadFailed, DownloadRequest, ResumeRefused

pytestmark = pytest.mark.unit

DATA = hashlib.shake_128(b"crew").digest(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SPREAD = Spread(look_seconds=0.03, least_bytes=4_000)
STEP = 2_000


class SlowHost:
    """Honours ranges; each connection brings `STEP` bytes in turn, and has to wait for them.

    Args:
        shared: all connections wait for one line together, so that more of them bring nothing.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.line = threading.Lock() if shared else None
        self.validator: str | None = '"v1"'
        self.asked: list[tuple[int, int | None]] = []
        self.open = 0
        self.most = 0
        self.spoil: Callable[[DownloadRequest], None] = lambda _request: None
        self._lock = threading.Lock()

    def __call__(self, request: DownloadRequest) -> Any:
        with self._lock:
            self.asked.append((request.offset, request.length))
            self.open += 1
            self.most = max(self.most, self.open)
        self.spoil(request)
        if request.offset and request.validator != self.validator:
            raise ResumeRefused
        return SlowBody(self, request)

    def wait(self) -> None:
        if self.line is None:
            time.sleep(0.004)
        else:
            with self.line:
                time.sleep(0.004)


class SlowBody(Body):
    def __init__(self, host: SlowHost, request: DownloadRequest) -> None:
        end = len(DATA) if request.length is None else request.offset + request.length
        super().__init__(DATA[request.offset : end], length=end - request.offset)
        self.host = host
        self.validator = host.validator
        self.is_open = True

    def readinto(self, buffer: Any) -> int:
        self.host.wait()
        return super().readinto(memoryview(buffer)[:STEP])

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.host.open -= 1
        super().close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("companion_core.models.byte_pump.BLOCK_BYTES", 8_000)


def fetch(folder: Path, host: Any, spread: Spread = SPREAD, **options: Any) -> None:
    store = ModelStore(folder, pace=Pace(spread=spread), sleep=lambda _seconds: None)
    verified = stage(folder, host, model_of(DATA), store=store, **options)
    assert os.pread(verified.files[0].descriptor, len(DATA) + 1, 0) == DATA
    assert names(folder) == [SHA256]
    verified.close()


def test_connections_that_are_slow_each_are_joined_by_others(folder: Path) -> None:
    host, done = SlowHost(), []
    fetch(folder, host, progress=lambda count, _total: done.append(count))
    assert 2 <= host.most <= 4
    assert host.open == 0
    assert done == sorted(done)
    assert done[-1] == len(DATA)


def test_a_line_that_is_full_is_not_shared_for_long(folder: Path) -> None:
    host = SlowHost(shared=True)
    fetch(folder, host)
    assert 2 <= host.most <= 3, "one that is given up, and on a busy machine another"
    assert host.open == 0


def test_one_connection_is_enough_where_it_is_told_so(folder: Path) -> None:
    host = SlowHost()
    fetch(folder, host, Spread(connections=1, look_seconds=0.01, least_bytes=1))
    assert host.asked == [(0, None)]


def test_without_a_validator_there_is_one_connection(folder: Path) -> None:
    host = SlowHost()
    host.validator = None
    fetch(folder, host)
    assert host.asked == [(0, None)]


@pytest.mark.parametrize(
    "failure",
    [
        ResumeRefused(),
        DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True),
        DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False),
        RuntimeError("theirs"),
    ],
)
def test_what_a_further_connection_meets_is_nobodys_failure(
    folder: Path, failure: Exception
) -> None:
    host = SlowHost()

    def spoil(_request: DownloadRequest) -> None:
        if host.open == 2:
            host.open -= 1
            raise failure

    host.spoil = spoil
    fetch(folder, host)
    assert len(host.asked) >= 2


def test_a_further_connection_that_hangs_is_given_up(folder: Path) -> None:
    host, given_up = SlowHost(), threading.Event()

    class Hanging(Body):
        def readinto(self, buffer: Any) -> int:
            given_up.wait(30)
            return 0

        def close(self) -> None:
            given_up.set()
            super().close()

    def download(request: DownloadRequest) -> Any:
        if host.open == 1:
            body = Hanging(b"", length=request.length)
            body.validator = host.validator
            return body
        return host(request)

    fetch(folder, download)
    assert given_up.is_set()


def test_other_bytes_under_another_validator_are_not_mixed_in(folder: Path) -> None:
    host = SlowHost()

    def download(request: DownloadRequest) -> Any:
        body = host(request)
        if host.open == 2:
            body.validator = '"v2"'
        return body

    fetch(folder, download)


def test_wrong_bytes_of_a_further_connection_get_no_name(folder: Path) -> None:
    host = SlowHost()

    def download(request: DownloadRequest) -> Any:
        body = host(request)
        if request.offset:
            body._data.write(b"\0" * 100)
            body._data.seek(0)
        return body

    with pytest.raises(Refused) as caught:
        fetch(folder, download)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert names(folder) == []


def test_cancelling_ends_them_all_and_keeps_what_is_there(folder: Path) -> None:
    host, cancelled = SlowHost(), threading.Event()

    def progress(_done: int, _total: int) -> None:
        if host.open >= 2:
            cancelled.set()

    with pytest.raises(CompanionError) as caught:
        fetch(folder, host, progress=progress, cancelled=cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    assert host.open == 0
    there = received(folder, SHA256)
    assert 0 < there < len(DATA)
    again = SlowHost()
    fetch(folder, again, Spread(connections=1))
    assert len(again.asked) >= 2, "there were gaps"
    assert sum(length or len(DATA) - offset for offset, length in again.asked) == len(DATA) - there


def test_a_file_with_gaps_is_never_taken_for_one_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment it is killed at: what the record claims was written before."""
    monkeypatch.setattr("companion_core.models.partial._NOTED_BYTES", 20_000)
    part, seen = folder / f".{SHA256}.part", []
    real = os.write

    def write(descriptor: int, block: Any) -> int:
        count = real(descriptor, block)
        if part.exists() and (folder / f".{SHA256}.resume").exists():
            seen.append(received(folder, SHA256))
            if len(seen) % 10 == 0:
                check()
        return count

    def check() -> None:
        record = read_record(record_of(folder, SHA256))
        assert record is not None
        content = part.read_bytes()
        for start, end in record.there(len(content)).ranges:
            assert content[start:end] == DATA[start:end]

    monkeypatch.setattr("companion_core.models.partial.os.write", write)
    fetch(folder, SlowHost())
    assert len(seen) > 20
