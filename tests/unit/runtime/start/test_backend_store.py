from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.errors import CompanionError, Reason
from companion_core.providers import BackendRequest, SpawnPlan
from companion_core.runtime.start import backend_store
from companion_core.runtime.start.backend_store import BackendStore
from companion_core.system.removal import Budget, folders_set_aside, remove_tree

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.name != "posix", reason="descriptors as paths are POSIX"),
]

UPLOAD = BackendRequest(method="POST", path="/blob", send_model=True, unless_stored=True)

CREATE = BackendRequest(method="POST", path="/create", json="{}", unless_stored=True)

LOAD = BackendRequest(method="POST", path="/load", json="{}")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    made = parts.verified_model(path)
    yield made
    made.close()


class Backend:
    """What a start does to the store, and what the next one makes of it."""

    def __init__(self, folder: Path, model) -> None:
        self.folder = folder / "data" / "models"
        self.link = self.folder / "blobs" / "x"
        self.record = folder / "backend-store.json"
        self.model = model
        self.plan = SpawnPlan(
            argv=("/it",),
            served_model="m",
            prepare=(UPLOAD, CREATE, LOAD),
            model_link=str(self.link),
            model_copies=(str(self.link),),
            store=str(self.folder),
        )

    def store(self, *, binary: str = "ab") -> BackendStore:
        return BackendStore(
            self.plan,
            self.model,
            data_dir=self.folder.parent,
            record=self.record,
            binary_sha256=binary,
        )

    def start(self, **how) -> tuple[BackendRequest, ...]:
        store = self.store(**how)
        requests = store.prove()
        if UPLOAD in requests:
            self.link.write_bytes(b"weights")
        if CREATE in requests:
            manifest = self.folder / "manifests" / "deep" / "latest"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_text("{}")
            (self.folder / "blobs" / "template").write_text("template")
        store.require_model()
        store.write_down()
        return requests


@pytest.fixture
def backend(tmp_path, model):
    return Backend(tmp_path, model)


@pytest.fixture
def no_links(monkeypatch):
    def refuse(*_args, **_options):
        raise OSError

    monkeypatch.setattr(backend_store.Path, "symlink_to", refuse)


def reason_of(function, *args) -> Reason:
    with pytest.raises(CompanionError) as caught:
        function(*args)
    return caught.value.reason


def test_the_model_is_linked_and_all_else_made_once(backend, tmp_path) -> None:
    assert backend.start() == (CREATE, LOAD)
    assert backend.link.samefile(tmp_path / "tiny.gguf")
    assert backend.start() == (LOAD,)
    assert backend.start() == (LOAD,)


def test_on_another_file_system_it_is_sent_once(backend, no_links, tmp_path) -> None:
    assert backend.start() == (UPLOAD, CREATE, LOAD)
    assert not backend.link.samefile(tmp_path / "tiny.gguf")
    assert backend.start() == (LOAD,)
    backend.link.write_bytes(b"weightz")
    assert backend.start() == (UPLOAD, LOAD)
    backend.link.unlink()
    assert backend.start() == (UPLOAD, LOAD)


def test_without_an_upload_it_is_copied_and_hashed(backend, no_links, tmp_path) -> None:
    backend.plan = replace(backend.plan, prepare=(LOAD,), store=None)
    assert backend.start() == (LOAD,)
    first = backend.link.stat().st_ino
    assert backend.link.read_bytes() == b"weights"
    assert backend.start() == (LOAD,)
    assert backend.link.stat().st_ino == first
    (tmp_path / "tiny.gguf").write_bytes(b"changed")
    backend.link.unlink()
    assert reason_of(backend.start) is Reason.DIGEST_MISMATCH
    assert list(backend.link.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["other file", "link", "the model", "folder"])
def test_a_file_in_the_models_place_is_replaced(backend, tmp_path, kind) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    backend.link.parent.mkdir(parents=True, mode=0o700)
    if kind == "other file":
        backend.link.write_text("left by somebody")
    elif kind == "link":
        backend.link.symlink_to(victim)
    elif kind == "folder":
        (backend.link / "below").mkdir(parents=True)
    else:
        backend.link.write_bytes(b"weights")
    for folder in (tmp_path / "data", backend.folder, backend.link.parent):
        folder.chmod(0o700)
    assert backend.start() == (CREATE, LOAD)
    assert backend.link.samefile(tmp_path / "tiny.gguf")
    assert victim.read_text() == "keep"
    assert [path.name for path in backend.link.parent.glob(".*")] == []


SPOILED = {
    "changed": lambda folder: (folder / "manifests/deep/latest").write_text("{ }"),
    "removed": lambda folder: (folder / "manifests/deep/latest").unlink(),
    "added": lambda folder: (folder / "manifests/evil").write_text("{}"),
    "added link": lambda folder: (folder / "manifests/evil").symlink_to("/etc"),
    "linked": lambda folder: (
        (folder / "blobs/template").rename(folder.parent / "away"),
        (folder / "blobs/template").symlink_to(folder.parent / "away"),
    ),
    "pipe": lambda folder: os.mkfifo(folder / "blobs/pipe"),
    "many": lambda folder: [(folder / f"blobs/{n}").touch() for n in range(300)],
    "large": lambda folder: (
        (folder / "blobs/sparse").touch(),
        os.truncate(folder / "blobs/sparse", 2**27),
    ),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_store_that_is_not_as_it_was_is_emptied_and_made_anew(backend, how) -> None:
    backend.start()
    assert backend.start() == (LOAD,)
    SPOILED[how](backend.folder)
    assert backend.start() == (CREATE, LOAD)
    files = sorted(path.name for path in backend.folder.rglob("*") if not path.is_dir())
    assert files == ["latest", "template", "x"]
    assert backend.start() == (LOAD,)


def test_another_program_or_request_makes_it_anew(backend) -> None:
    backend.start()
    assert backend.start(binary="cd") == (CREATE, LOAD)
    changed = replace(CREATE, json='{"threads":2}')
    backend.plan = replace(backend.plan, prepare=(UPLOAD, changed, LOAD))
    assert backend.start(binary="cd") == (changed, LOAD)
    other = replace(LOAD, json='{"keep":1}')  # not what it keeps
    backend.plan = replace(backend.plan, prepare=(UPLOAD, changed, other))
    assert backend.store(binary="cd").prove() == (changed, other)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"maker":1}', b"null"])
def test_a_malformed_record_is_ignored(backend, record) -> None:
    backend.start()
    backend.record.write_bytes(record)
    backend.record.chmod(0o600)
    assert backend.start() == (CREATE, LOAD)


def test_a_start_that_failed_leaves_no_record(backend) -> None:
    backend.start()
    (backend.folder / "blobs/template").write_text("spoiled")
    backend.store().prove()
    assert not backend.record.exists()
    backend.store().prove()  # and the one after that
    backend.link.unlink()
    assert reason_of(backend.store().require_model) is Reason.DIGEST_MISMATCH
    assert not backend.record.exists()


def test_a_plan_that_keeps_nothing_is_sent_whole(backend) -> None:
    backend.plan = replace(backend.plan, model_link=None, model_copies=(), store=None)
    assert backend.store().prove() == (UPLOAD, CREATE, LOAD)
    assert backend.store().prove() == (UPLOAD, CREATE, LOAD)


@pytest.mark.parametrize("kind", ["missing", "other", "link", "folder", "pipe"])
def test_a_copy_that_is_not_the_model(tmp_path, backend, kind) -> None:
    path = tmp_path / "copy"
    if kind == "other":
        path.write_bytes(b"weightz")
    elif kind == "link":
        path.symlink_to(tmp_path / "tiny.gguf")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    backend.plan = replace(backend.plan, model_copies=(str(path),))
    assert reason_of(backend.store().require_model) is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("place", ["models", "models/blobs"])
def test_what_a_link_in_place_of_a_folder_leads_to_is_left_alone(backend, tmp_path, place) -> None:
    mine = tmp_path / "Documents"
    mine.mkdir()
    (mine / "thesis.txt").write_text("ten years")
    at = tmp_path / "data" / place
    at.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    at.symlink_to(mine)
    assert backend.start() == (CREATE, LOAD)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert not at.is_symlink()


def test_a_cancelled_start_stops_hashing_and_leaves_nothing(backend, no_links) -> None:
    backend.plan = replace(backend.plan, prepare=(LOAD,), store=None)
    cancelled = threading.Event()
    cancelled.set()
    assert reason_of(backend.store().prove, cancelled) is Reason.INTERRUPTED
    assert list(backend.link.parent.iterdir()) == []


def test_no_name_of_the_model_is_left_where_the_runtime_writes(backend, tmp_path) -> None:
    stored, hidden = tmp_path / "tiny.gguf", backend.folder.parent / "away" / "closed"
    backend.start()
    hidden.mkdir(parents=True)
    os.link(stored, hidden / "one")
    hidden.chmod(0)
    backend.link.unlink()
    os.link(stored, backend.link)  # as earlier versions placed it
    assert backend.start() == (LOAD,)  # what else the backend stored is kept
    assert stored.stat().st_nlink == 1
    assert backend.link.is_symlink()
    assert list(hidden.iterdir()) == []


def test_a_link_that_leads_elsewhere_later_is_not_the_model(backend, tmp_path) -> None:
    store = backend.store()
    store.prove()
    assert store.has_links_alone
    (tmp_path / "tiny.gguf").rename(tmp_path / "away")
    (tmp_path / "tiny.gguf").write_bytes(b"weights")
    assert not store.has_links_alone


def test_what_is_mounted_over_is_an_empty_file(backend) -> None:
    def start() -> BackendStore:
        return BackendStore(
            backend.plan,
            backend.model,
            data_dir=backend.folder.parent,
            record=backend.record,
            binary_sha256="ab",
            mounted=True,
        )

    backend.start()  # as another tier left it
    for _ in range(2):
        store = start()
        assert store.prove() == (LOAD,)
        assert store.has_links_alone
        assert backend.link.lstat().st_size == 0
        assert not backend.link.is_symlink()
    backend.link.unlink()
    backend.link.write_bytes(b"weightz")
    assert not store.has_links_alone
    assert reason_of(store.require_model) is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("where", ["the store", "beside it"])
def test_a_folder_that_cannot_be_looked_through_is_set_aside(backend, where) -> None:
    """Deeper than recursion and paths allow: a hostile runtime can make it in a moment."""
    backend.start()
    data = backend.folder.parent
    filled = backend.folder if where == "the store" else data
    os.link(backend.model.files[0].path, filled / "name of the model")
    at = os.open(filled, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert backend.start() == (CREATE, LOAD)
    assert backend.link.samefile(backend.model.files[0].path)
    assert not (filled / "deeper").exists()
    assert not (filled / "name of the model").exists()
    assert backend.start() == (LOAD,)
    for left in folders_set_aside(data.parent):
        remove_tree(left, Budget(seconds=60))
    assert folders_set_aside(data.parent) == []


@pytest.mark.parametrize("stays", ["a file", "a folder"])
def test_a_store_that_cannot_be_emptied_is_set_aside(backend, monkeypatch, stays) -> None:
    backend.start()
    odd = backend.folder / "odd"
    odd.touch() if stays == "a file" else (odd / "below").mkdir(parents=True)
    (backend.folder / "changed").touch()
    real, refused = (os.unlink, "unlink") if stays == "a file" else (os.rename, "rename")

    def refuse(path, *arguments, **options):
        if Path(path).name == "odd":
            raise PermissionError(1, "immutable")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, refused, refuse)
    assert backend.start() == (CREATE, LOAD)
    assert not odd.exists()
    monkeypatch.undo()
