"""A person's file on its way into the store: hashed, whole, and the original left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from companion_core.decisions import pieces
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.models import intake
from companion_core.models.intake import read_head, take_file

pytestmark = pytest.mark.unit

DEMO = Path(__file__).parents[3] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    shutil.copyfile(DEMO, path)
    path.chmod(0o644)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def reason_of(call: Any, kind: type[CompanionError] = CompanionError) -> Reason:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.reason


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


@pytest.mark.parametrize("way", ["a second name", "a copy"])
def test_a_file_is_in_the_store_under_its_digest(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "a copy":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    before = source.stat()
    taken = take_file(source, store)
    data = DEMO.read_bytes()
    assert (taken.size, taken.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert names(store) == [taken.sha256]
    assert (store / taken.sha256).read_bytes() == data
    now = source.stat()
    assert (now.st_mode, now.st_mtime_ns, now.st_size) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_size,
    )


def test_a_copy_is_read_only_and_apart(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    taken = take_file(source, store)
    copy = store / taken.sha256
    assert copy.stat().st_mode & 0o777 == 0o400
    assert copy.stat().st_ino != source.stat().st_ino


def test_a_file_that_others_may_write_is_copied(source: Path, store: Path) -> None:
    source.chmod(0o666)
    taken = take_file(source, store)
    assert (store / taken.sha256).stat().st_ino != source.stat().st_ino


def test_each_piece_is_hashed(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PIECE_BYTES", 1000)
    data = bytes(range(256)) * 10
    path = tmp_path / "data"
    path.write_bytes(data)
    taken = take_file(path, store)
    expected = [hashlib.sha256(data[at : at + 1000]).digest() for at in range(0, len(data), 1000)]
    assert taken.pieces == b"".join(expected)
    assert len(expected) * pieces.DIGEST_BYTES == len(taken.pieces)


def test_progress_is_told(source: Path, store: Path) -> None:
    told: list[tuple[int, int]] = []
    take_file(source, store, progress=lambda done, total: told.append((done, total)))
    size = source.stat().st_size
    assert told[-1] == (size, size)


def test_the_same_file_may_be_taken_twice(source: Path, store: Path) -> None:
    assert take_file(source, store) == take_file(source, store)
    assert len(names(store)) == 1


def test_what_is_cancelled_leaves_nothing(source: Path, store: Path) -> None:
    ended = threading.Event()
    ended.set()
    assert reason_of(lambda: take_file(source, store, cancelled=ended)) is Reason.INTERRUPTED
    assert names(store) == []


def test_a_file_that_changes_meanwhile_is_not_taken(source: Path, store: Path) -> None:
    def change(_done: int, _total: int) -> None:
        os.utime(source, ns=(0, 0))

    refused = reason_of(lambda: take_file(source, store, progress=change))
    assert refused is Reason.MODEL_IN_USE
    assert names(store) == []


def test_what_an_earlier_intake_left_is_removed(source: Path, store: Path) -> None:
    store.mkdir(mode=0o700)
    (store / ".0123.taking").write_bytes(b"half")
    taken = take_file(source, store)
    assert names(store) == [taken.sha256]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_told_by_name(tmp_path: Path, store: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        pytest.importorskip("fcntl")
        os.mkfifo(path)
        os.open(path, os.O_RDWR)  # or opening it would wait
    with pytest.raises(EnvironmentUnavailable) as caught:
        take_file(path, store)
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert str(path) in caught.value.detail


def test_without_room_nothing_is_taken(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    monkeypatch.setattr(intake, "make_room", lambda *_, **__: False)
    with pytest.raises(EnvironmentUnavailable) as caught:
        take_file(source, store)
    assert "room" in caught.value.detail
    assert names(store) == []


# --- the head -------------------------------------------------------------------------------


def test_a_head_is_read(source: Path) -> None:
    head, size = read_head(source)
    assert size == source.stat().st_size
    assert head.complete


def test_what_is_no_gguf_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\3\4 a zip file")
    with pytest.raises(Refused) as caught:
        read_head(path)
    assert caught.value.reason is Reason.MODEL_FORMAT_UNSUPPORTED
    assert "no GGUF" in caught.value.detail


def test_a_file_that_is_cut_off_is_refused_in_words(source: Path) -> None:
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size - 100_000)
    with pytest.raises(Refused) as caught:
        read_head(source)
    assert "cut off" in caught.value.detail
