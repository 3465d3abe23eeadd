"""The store with downloaders in memory; the same on real TLS hosts is in tests/integration."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staging_parts import (
    ALLOWED,
    DATA,
    URL,
    Body,
    cut_off,
    good,
    have_free,
    model_of,
    names,
    stage,
    store_of,
)

from companion_core.decisions.integrity import ModelSpec, parse_model_spec
from companion_core.decisions.manifest import Manifest, verify_manifest
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    PluginFault,
    Reason,
    Refused,
)
from companion_core.models import fetch as staging
from companion_core.models import proof as model_proof
from companion_core.models.byte_pump import BLOCK_BYTES, BLOCKS
from companion_core.models.partial import Partial
from companion_core.models.store import ModelStore, ProvedFile, VerifiedModel
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.system.folder_lock import lock_folder
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def refusal(folder: Path, download: Callable[[DownloadRequest], Any], **options: Any) -> Reason:
    with pytest.raises(CompanionError) as caught:
        stage(folder, download, **options)
    assert names(folder) == []
    assert str(caught.value) == caught.value.reason.value  # no path, no address, no digest
    return caught.value.reason


def test_a_stored_file_is_proved_while_another_downloads(folder: Path) -> None:
    stage(folder, good).close()
    given_up = threading.Event()
    patience = threading.Timer(10, given_up.set)
    with lock_folder(folder, threading.Event()):  # as one that downloads another model does
        patience.start()
        stage(folder, good, cancelled=given_up).close()
    patience.cancel()


def test_the_descriptor_holds_exactly_the_bytes_that_were_signed_for(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    verified = stage(folder, good, progress=lambda done, total: seen.append((done, total)))
    [file] = verified.files
    assert os.pread(file.descriptor, len(DATA) + 1, 0) == DATA
    assert os.get_inheritable(file.descriptor) is False
    assert names(folder) == [file.sha256]
    assert Path(file.path).stat().st_mode & 0o777 == 0o400
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [total for _, total in seen] == [len(DATA)] * len(seen)
    assert seen == sorted(seen)
    assert seen[-1][0] == len(DATA)
    verified.close()
    verified.close()


def test_what_is_in_the_store_is_hashed_again_and_not_fetched_again(folder: Path) -> None:
    stage(folder, good).close()

    def never(_request: DownloadRequest) -> Body:
        raise AssertionError

    stage(folder, never).close()


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA + b"x", b"\1" + DATA[1:]])
def test_a_damaged_stored_file_is_fetched_again(folder: Path, damage: bytes) -> None:
    verified = stage(folder, good)
    path = Path(verified.files[0].path)
    verified.close()
    path.chmod(0o600)
    path.write_bytes(damage)
    stage(folder, good).close()
    assert path.read_bytes() == DATA


def test_a_damaged_stored_file_is_gone_even_when_it_cannot_be_fetched(folder: Path) -> None:
    verified = stage(folder, good)
    path = Path(verified.files[0].path)
    verified.close()
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    failing = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)

    def fail(_request: DownloadRequest) -> Body:
        raise failing

    assert refusal(folder, fail) is Reason.DOWNLOAD_FAILED


def test_a_link_in_the_place_of_a_model_is_removed_and_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    verified = stage(folder, good)
    path = Path(verified.files[0].path)
    verified.close()
    victim = tmp_path / "victim"
    victim.write_bytes(DATA)
    path.unlink()
    path.symlink_to(victim)
    stage(folder, good).close()
    assert not path.is_symlink()
    assert victim.read_bytes() == DATA


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (DATA[:-1], Reason.DOWNLOAD_FAILED),
        (DATA + b"x", Reason.SIZE_MISMATCH),
        (b"", Reason.DOWNLOAD_FAILED),
        (b"\1" + DATA[1:], Reason.DIGEST_MISMATCH),
    ],
)
def test_wrong_bytes_get_no_name(folder: Path, data: bytes, reason: Reason) -> None:
    assert refusal(folder, lambda _request: Body(data)) is reason


def test_endless_stream(folder: Path) -> None:
    """covers: download_stage/endless-stream"""
    reads = 0

    class Endless(Body):
        def readinto(self, buffer: Any) -> int:
            nonlocal reads
            reads += 1
            return len(buffer)

    assert refusal(folder, lambda _request: Endless(b"")) is Reason.SIZE_MISMATCH
    # One block over the size proves it, and no more than the ring holds was read ahead.
    assert reads <= len(DATA) // BLOCK_BYTES + 1 + BLOCKS


def test_content_length_differs(folder: Path) -> None:
    """covers: download_stage/content-length-differs"""

    class Unread(Body):
        def readinto(self, buffer: Any) -> int:
            # The pump may have begun; nothing that it reads is taken.
            return len(buffer)

    written: list[int] = []
    body = Unread(b"", length=len(DATA) + 1)
    assert (
        refusal(folder, lambda _request: body, progress=lambda done, _all: written.append(done))
        is Reason.SIZE_MISMATCH
    )
    assert written == []


def test_short_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: download_stage/short-write"""
    real = os.write
    sizes: list[int] = []

    def short(descriptor: int, data: Any) -> int:
        sizes.append(len(data))
        return real(descriptor, bytes(data[:50_000]))

    monkeypatch.setattr("companion_core.models.partial.os.write", short)
    stage(folder, good).close()
    assert len(sizes) > len(DATA) // 50_000


@pytest.mark.parametrize("at", [1, 2, 3])
def test_enospc_mid_download(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """covers: download_stage/enospc-mid-download"""
    real = os.write
    calls = 0

    def full(descriptor: int, data: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(descriptor, data)

    monkeypatch.setattr("companion_core.models.partial.os.write", full)
    assert refusal(folder, good) is Reason.DISK_UNAVAILABLE
    assert calls == at


def test_a_disk_that_is_too_small_is_told_before_the_download(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_free(monkeypatch, lambda: len(DATA) - 1)

    def never(_request: DownloadRequest) -> Body:
        raise AssertionError

    assert refusal(folder, never) is Reason.DISK_UNAVAILABLE


def test_slow_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: download_stage/slow-disk"""
    real = os.write
    given, written, ahead = 0, 0, 0
    data = bytes(12 << 20)

    class Counting(Body):
        def readinto(self, buffer: Any) -> int:
            nonlocal given
            count = super().readinto(buffer)
            given += count
            return count

    turn = threading.Event()

    def slow(descriptor: int, block: Any) -> int:
        nonlocal written, ahead
        turn.wait(0.01)
        ahead = max(ahead, given - written)
        written += len(block)
        return real(descriptor, block)

    monkeypatch.setattr("companion_core.models.partial.os.write", slow)
    stage(folder, lambda _request: Counting(data), model_of(data)).close()
    assert 0 < ahead <= 8 << 20


def test_sink_raises(folder: Path) -> None:
    """covers: download_stage/sink-raises"""
    closed = threading.Event()
    calls = 0

    class Closing(Body):
        def close(self) -> None:
            closed.set()
            super().close()

    class Sink(Exception):
        pass

    def progress(_done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        raise Sink

    with pytest.raises(Sink):
        stage(folder, lambda _request: Closing(DATA), progress=progress)
    assert closed.wait(5)
    assert calls == 1
    assert names(folder) == []


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to], ids=["link", "second-name"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_temp_symlink(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], None],
    *,
    late: bool,
) -> None:
    """covers: download_stage/temp-symlink, temp-hardlink-or-shared-dir"""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    cut_off(folder, 1_500_000)
    data = folder / f".{model_of().files[0].sha256}.part"
    data.unlink()
    make(data, victim)
    if late:
        real = Partial.remove
        monkeypatch.setattr(Partial, "remove", lambda self: (real(self), make(data, victim))[0])
        with pytest.raises(EnvironmentUnavailable) as caught:
            stage(folder, good)
        assert caught.value.reason is Reason.DISK_UNAVAILABLE
    else:
        verified = stage(folder, good)
        assert names(folder) == [verified.files[0].sha256]
        verified.close()
    assert victim.read_bytes() == b"precious"


def test_shared_folder(folder: Path) -> None:
    """covers: download_stage/temp-hardlink-or-shared-dir"""
    folder.mkdir()
    folder.chmod(0o777)
    assert refusal(folder, good) is Reason.STATE_PATH_UNSAFE


def test_relative_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """covers: download_stage/relative-verified-path"""
    monkeypatch.chdir(tmp_path)

    def never(_request: DownloadRequest) -> Body:
        raise AssertionError

    with pytest.raises(Refused) as caught:
        stage(Path("models"), never)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    assert names(tmp_path) == []


def test_file_then_rename_then_folder_are_synced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """covers: download_stage/dir-fsync"""
    steps: list[str] = []
    real_fsync, real_replace, real_folder = os.fsync, Path.replace, staging.fsync_folder

    def sync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == len(DATA):  # the record of what came is small
            steps.append("file")
        real_fsync(descriptor)

    def replace(path: Path, to: Path) -> None:
        if not to.name.startswith("."):
            steps.append("rename")
        real_replace(path, to)

    monkeypatch.setattr(staging.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)

    def folder_sync(path: Path) -> None:
        steps.append("folder")
        real_folder(path)

    monkeypatch.setattr(staging, "fsync_folder", folder_sync)
    stage(folder, good).close()
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_cross_device_and_failing_sync(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """covers: download_stage/cross-device"""
    real_fsync, real_replace = os.fsync, Path.replace
    crossed = OSError(errno.EXDEV, "Invalid cross-device link", str(folder))

    def sync(descriptor: int) -> None:
        if call == "fsync" and os.fstat(descriptor).st_size == len(DATA):
            raise crossed
        real_fsync(descriptor)

    def replace(path: Path, to: Path) -> None:
        if call == "replace" and not to.name.startswith("."):
            raise crossed
        real_replace(path, to)

    monkeypatch.setattr(staging.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    before = open_descriptors()
    assert refusal(folder, good) is Reason.DISK_UNAVAILABLE
    assert open_descriptors() <= before


def test_replaced_or_rewritten_between_proof_and_start(folder: Path) -> None:
    """covers: download_stage/toctou-spawn"""
    verified = stage(folder, good)
    [file] = verified.files
    verified.prove_again()
    path = Path(file.path)
    path.unlink()
    path.write_bytes(b"another model")
    assert os.pread(file.descriptor, len(DATA), 0) == DATA  # the proof is not the name
    verified.prove_again()
    verified.close()

    path.unlink()
    verified = stage(folder, good)
    path.chmod(0o600)
    with path.open("r+b") as writer:
        writer.write(b"evil")
    with pytest.raises(Refused) as caught:
        verified.prove_again()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    verified.close()
    with pytest.raises(Refused):
        verified.prove_again()


def test_written_to_while_it_is_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model_proof.Prover._hash

    def hash_and_touch(self: Any, descriptor: int) -> Any:
        verdict = real(self, descriptor)
        os.utime(descriptor, ns=(1, 1))
        return verdict

    monkeypatch.setattr(model_proof.Prover, "_hash", hash_and_touch)
    assert refusal(folder, good) is Reason.MODEL_IN_USE


def test_written_to_between_its_proof_and_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(store: Path) -> None:
        name = names(store)[-1]
        assert not name.startswith(".")
        (store / name).chmod(0o600)
        with (store / name).open("r+b") as writer:
            writer.write(b"evil")

    monkeypatch.setattr(staging, "fsync_folder", write)
    verified = stage(folder, good)
    with pytest.raises(Refused) as caught:
        verified.prove_again()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    verified.close()


def test_what_an_earlier_run_left_is_removed(folder: Path) -> None:
    """covers: download_stage/resume"""
    folder.mkdir(mode=0o700)
    for left in (f".{'0' * 64}.{'a' * 16}.part", f"..{'1' * 64}.resume.{'a' * 16}"):
        (folder / left).write_bytes(b"left over")
    verified = stage(folder, good)
    assert names(folder) == [verified.files[0].sha256]
    verified.close()


def test_two_at_once_fetch_once(folder: Path) -> None:
    """covers: download_stage/resume"""
    fetched = 0
    started = threading.Event()
    go_on = threading.Event()

    def slow(_request: DownloadRequest) -> Body:
        nonlocal fetched
        fetched += 1
        started.set()
        go_on.wait(10)
        return good(_request)

    results: list[VerifiedModel] = []
    threads = [
        threading.Thread(target=lambda: results.append(stage(folder, slow))) for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert (fetched, len(results)) == (1, 2)
    for verified in results:
        verified.close()


def test_error_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: download_stage/error-text"""

    def fail(path: Any, *_arguments: Any, **_options: Any) -> int:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    folder.mkdir(mode=0o700)
    model = model_of()
    monkeypatch.setattr(shutil, "disk_usage", fail)
    with pytest.raises(EnvironmentUnavailable) as caught:
        stage(folder, good, model)
    error = caught.value
    assert error.reason is Reason.DISK_UNAVAILABLE
    for text in (str(error), error.detail, error.advice):
        assert str(folder) not in text
        assert model.files[0].sha256 not in text


def test_what_the_manifest_proved_is_not_proved_again(folder: Path) -> None:
    """The address of the manifest stands; a redirect is a new one, which nothing has proved."""
    with pytest.raises(Refused) as caught:
        store_of(folder).stage(model_of(), allowed_sources=(), download=redirected)
    assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED
    store_of(folder).stage(model_of(), allowed_sources=(), download=good).close()


def redirected(_request: DownloadRequest) -> Body:
    raise Redirect(URL)


def test_redirects_are_admitted_one_by_one(folder: Path) -> None:
    """covers: download_stage/redirect"""
    asked: list[str] = []

    def moved(request: DownloadRequest) -> Body:
        asked.append(request.url)
        if len(asked) < 6:
            raise Redirect(f"{ALLOWED[0]}hop{len(asked)}")
        return good(request)

    stage(folder, moved).close()
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("https://evil.example/tiny.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("http://models.example.org/companion/tiny.gguf", Reason.SCHEME_NOT_ALLOWED),
        ("file:///etc/passwd", Reason.SCHEME_NOT_ALLOWED),
        (URL, Reason.DOWNLOAD_FAILED),  # a loop
        ("https://u v/", Reason.DOWNLOAD_FAILED),  # no address: the host's fault
        (None, Reason.PLUGIN_RESULT_INVALID),
    ],
)
def test_redirects_to_elsewhere(folder: Path, target: Any, reason: Reason) -> None:
    """covers: download_stage/redirect"""
    asked: list[str] = []

    def moved(request: DownloadRequest) -> Body:
        asked.append(request.url)
        raise Redirect(target)

    assert refusal(folder, moved) is reason
    assert set(asked) == {URL}
    assert len(asked) <= 6


@pytest.mark.parametrize(
    ("signed", "target", "reason"),
    [
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "https://new.cdn.hf.co/x?s=1", Reason.OK),
        (
            "https://huggingface.co/a/b/resolve/c/m.gguf",
            "https://hf.co.evil.example/x",
            Reason.SOURCE_NOT_ALLOWED,
        ),
        (
            "https://models.example.org/m.gguf",
            "https://new.cdn.hf.co/x",
            Reason.SOURCE_NOT_ALLOWED,
        ),
    ],
)
def test_the_hubs_byte_hosts_are_open_to_what_is_signed_for_the_hub_alone(
    folder: Path, signed: str, target: str, reason: Reason
) -> None:
    publisher, document = FakePublisher(), manifest_document(signed, DATA)
    manifest = verify_manifest(
        publisher.envelope(document),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)

    def moved(request: DownloadRequest) -> Body:
        if request.url == signed:
            raise Redirect(target)
        assert request.url == target
        return good(request)

    def staged() -> Reason:
        try:
            store_of(folder).stage(
                manifest.models[0], allowed_sources=manifest.allowed_sources, download=moved
            ).close()
        except CompanionError as error:
            return error.reason
        return Reason.OK

    assert staged() is reason


def test_the_next_address_is_tried(folder: Path) -> None:
    second = ALLOWED[0] + "mirror.gguf"
    asked: list[str] = []

    def first_fails(request: DownloadRequest) -> Body:
        asked.append(request.url)
        if request.url == URL:
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        return good(request)

    stage(folder, first_fails, model_of(DATA, URL, second)).close()
    assert asked == [URL, second]


def test_a_passing_failure_is_tried_three_times(folder: Path) -> None:
    pauses: list[float] = []
    asked = 0

    def fail(_request: DownloadRequest) -> Body:
        nonlocal asked
        asked += 1
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)

    store = ModelStore(folder, sleep=pauses.append)
    assert refusal(folder, fail, store=store) is Reason.DOWNLOAD_FAILED
    assert (asked, pauses) == (3, [0.5, 2.0])


def test_what_was_received_is_resumed_and_verified_whole(folder: Path) -> None:
    """covers: download_stage/resume"""
    requests: list[tuple[int, str | None]] = []

    def breaks(request: DownloadRequest) -> Body:
        requests.append((request.offset, request.validator))
        rest = DATA[request.offset :]
        if request.offset:
            return Body(rest, length=len(rest))
        broken = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)
        body = Body(rest[:1_500_000], length=len(DATA), failure=broken)
        body.validator = '"v1"'
        return body

    stage(folder, breaks).close()
    assert requests == [(0, None), (1_500_000, '"v1"')]


def test_a_wrong_rest_is_no_model(folder: Path) -> None:
    """covers: download_stage/resume"""

    def breaks(request: DownloadRequest) -> Body:
        if request.offset:
            return Body(bytes(len(DATA) - request.offset))
        broken = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)
        body = Body(DATA[:10], failure=broken)
        body.validator = '"v1"'
        return body

    assert refusal(folder, breaks) is Reason.DIGEST_MISMATCH


def test_a_refused_resume_starts_from_zero(folder: Path) -> None:
    """covers: download_stage/resume"""
    offsets: list[int] = []

    def refuses(request: DownloadRequest) -> Body:
        offsets.append(request.offset)
        if request.offset:
            raise ResumeRefused
        if len(offsets) > 1:
            return good(request)
        body = Body(DATA[:10], failure=DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True))
        body.validator = '"v1"'
        return body

    stage(folder, refuses).close()
    assert offsets == [0, 10, 0]


def test_without_a_validator_it_starts_from_zero(folder: Path) -> None:
    offsets: list[int] = []

    def breaks(request: DownloadRequest) -> Body:
        offsets.append(request.offset)
        if len(offsets) > 1:
            return good(request)
        return Body(DATA[:10], failure=DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True))

    stage(folder, breaks).close()
    assert offsets == [0, 0]


@pytest.mark.parametrize("where", ["open", "read"])
def test_a_downloader_that_hangs_costs_a_deadline(folder: Path, where: str) -> None:
    """covers: download_stage/stall"""
    release = threading.Event()

    class Hanging(Body):
        def readinto(self, buffer: Any) -> int:
            release.wait(30)
            return 0

    def hang(_request: DownloadRequest) -> Body:
        if where == "open":
            release.wait(30)
        return Hanging(b"")

    store = store_of(folder, open_seconds=0.2, block_seconds=0.2)
    try:
        assert refusal(folder, hang, store=store) is Reason.DOWNLOAD_FAILED
    finally:
        release.set()


@pytest.mark.parametrize("result", [None, -1, 1 << 30, "5", True])
def test_a_downloader_that_answers_nonsense_is_named(folder: Path, result: Any) -> None:
    class Nonsense(Body):
        def readinto(self, buffer: Any) -> Any:
            return result

    with pytest.raises(PluginFault) as caught:
        stage(folder, lambda _request: Nonsense(b""), plugin="theirs")
    assert (caught.value.reason, caught.value.plugin) == (Reason.PLUGIN_RESULT_INVALID, "theirs")
    assert names(folder) == []


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, OSError])
def test_a_downloader_that_raises_anything_is_named(
    folder: Path, error: type[BaseException]
) -> None:
    def fail(_request: DownloadRequest) -> Body:
        raise error

    assert refusal(folder, fail) is Reason.PLUGIN_CALL_FAILED


def test_a_downloader_is_not_blamed_for_a_limit_of_the_system(folder: Path) -> None:
    def fail(_request: DownloadRequest) -> Body:
        raise OSError(errno.EMFILE, "too many")

    assert refusal(folder, fail) is Reason.LIMIT_REACHED


def test_cancelling_leaves_nothing(folder: Path) -> None:
    cancelled = threading.Event()

    def progress(_done: int, _total: int) -> None:
        cancelled.set()

    assert refusal(folder, good, progress=progress, cancelled=cancelled) is Reason.INTERRUPTED


def test_giving_up_hangs_up(folder: Path) -> None:
    """covers: download_stage/stall"""
    bodies: list[Waiting] = []

    class Waiting(Body):
        def __init__(self) -> None:
            super().__init__(b"")
            self.hung_up = threading.Event()
            bodies.append(self)

        def readinto(self, buffer: Any) -> int:
            self.hung_up.wait(30)
            return 0

        def close(self) -> None:
            self.hung_up.set()
            super().close()

    store = store_of(folder, block_seconds=0.1)
    assert refusal(folder, lambda _request: Waiting(), store=store) is Reason.DOWNLOAD_FAILED
    assert [body.hung_up.is_set() for body in bodies] == [True] * 3


def test_cancelling_ends_the_wait_for_another(folder: Path) -> None:
    cancelled = threading.Event()
    waiting = threading.Event()

    def hold(_request: DownloadRequest) -> Body:
        waiting.set()
        cancelled.wait(10)
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)

    errors: list[Reason] = []

    def first() -> None:
        try:
            stage(folder, hold)
        except CompanionError as error:
            errors.append(error.reason)

    thread = threading.Thread(target=first)
    thread.start()
    assert waiting.wait(10)
    timer = threading.Timer(0.05, cancelled.set)
    timer.start()
    with pytest.raises(CompanionError) as caught:
        stage(folder, good, cancelled=cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    thread.join()
    timer.join()
    assert errors == [Reason.DOWNLOAD_FAILED]


def test_a_second_file_that_fails_closes_the_first(folder: Path) -> None:
    publisher = FakePublisher()
    document = manifest_document(URL, DATA)
    [first] = document["models"][0]["files"]
    document["models"][0]["files"] = [first, {**first, "name": "b.gguf", "sha256": "0" * 64}]
    manifest = verify_manifest(
        publisher.envelope(document),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)
    before = open_descriptors()
    with pytest.raises(Refused):
        stage(folder, good, manifest.models[0])
    assert open_descriptors() <= before
    assert names(folder) == [first["sha256"]]


def test_only_staging_makes_the_proof() -> None:
    spec = parse_model_spec("0" * 64, 1)
    assert isinstance(spec, ModelSpec)
    with pytest.raises(TypeError):
        VerifiedModel("tiny", "gguf", None, (), [])
    with pytest.raises(TypeError):
        ProvedFile("tiny", spec, "/", model_proof.Proof(0, (0, 0, 0, 0, 0), held=False))


def test_only_what_could_have_changed_a_byte_has_it_hashed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = model_proof.Prover._hash

    def counted(prover: Any, descriptor: int) -> Any:
        hashed.append(descriptor)
        return real(prover, descriptor)

    stage(folder, good).close()
    verified = stage(folder, good, store=ModelStore(folder, hold=lambda *_: True))
    [file] = verified.files
    path = Path(file.path)
    # In place of a lease, which takes an event loop in the main thread.
    monkeypatch.setattr(model_proof, "is_held", lambda _: True)
    monkeypatch.setattr(model_proof.Prover, "_hash", counted)
    for change in (
        lambda: None,
        lambda: path.chmod(0o600),
        lambda: os.link(path, path.with_name("link")),
        lambda: path.rename(path.with_name("renamed")),
        lambda: os.utime(file.descriptor, ns=(1, 1)),
    ):
        change()
        verified.prove_again()
        verified.prove_again()
    assert len(hashed) == 4
    assert verified.is_open
    verified.close()


def test_without_a_lease_a_mapping_that_was_written_to_is_found(folder: Path) -> None:
    """Through a page that is dirty already bytes change, and the time of change does not."""
    verified = stage(folder, good)
    path = Path(verified.files[0].path)
    path.chmod(0o600)
    with path.open("r+b") as writer:
        mapped = mmap.mmap(writer.fileno(), 0)
    first = mapped[:1]
    mapped[:1] = b"E"
    mapped[:1] = first
    path.chmod(0o400)
    verified.prove_again()
    mapped[:4] = b"EVIL"
    with pytest.raises(Refused, match="digest_mismatch"):
        verified.prove_again()
    mapped.close()


def test_a_stored_file_that_is_written_to_is_neither_used_nor_removed(folder: Path) -> None:
    def busy(_descriptor: int, _pause: Any) -> bool:
        raise BlockingIOError

    def never(_request: DownloadRequest) -> Body:
        raise AssertionError

    stage(folder, good).close()
    (stored,) = folder.glob("?" * 64)
    before = stored.stat().st_ino
    with pytest.raises(CompanionError, match="model_in_use"):
        stage(folder, never, store=ModelStore(folder, hold=busy))
    assert stored.stat().st_ino == before
    stage(folder, never).close()


@pytest.mark.parametrize("bad", ["bytes", "size", "mode"])
def test_what_was_changed_and_hidden_is_found_and_never_used_again(folder: Path, bad: str) -> None:
    stage(folder, good).close()
    verified = stage(folder, good)
    path = Path(verified.files[0].path)
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as writer:
        if bad == "size":
            writer.truncate(len(DATA) - 1)
        elif bad == "bytes":
            writer.write(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o666 if bad == "mode" else 0o400)
    reasons = {
        "bytes": Reason.DIGEST_MISMATCH,
        "size": Reason.SIZE_MISMATCH,
        "mode": Reason.STATE_PATH_UNSAFE,
    }
    for reason in (reasons[bad], Reason.DIGEST_MISMATCH):
        with pytest.raises(Refused) as caught:
            verified.prove_again()
        assert caught.value.reason is reason
        assert not verified.is_open


def test_another_proof_that_is_cut_short_refutes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = stage(folder, good)
    cancelled = threading.Event()
    cancelled.set()
    Path(verified.files[0].path).chmod(0o600)
    with pytest.raises(CompanionError) as caught:
        verified.prove_again(cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    with monkeypatch.context() as patched:
        patched.setattr(model_proof.Prover, "_hash", lambda *_: os.read(-1, 1))
        with pytest.raises(EnvironmentUnavailable) as failed:
            verified.prove_again()
    assert failed.value.reason is Reason.DISK_UNAVAILABLE
    verified.prove_again()
    verified.close()


def test_a_full_disk_is_final_and_keeps_what_came(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """covers: download_stage/enospc-mid-download"""
    asked: list[int] = []
    real, calls = os.write, 0

    def download(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        body = Body(DATA[request.offset :], length=len(DATA) - request.offset)
        body.validator = '"v1"'
        return body

    def full(descriptor: int, data: Any) -> int:
        nonlocal calls
        calls += len(data) == BLOCK_BYTES
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr("companion_core.models.partial.os.write", full)
        with pytest.raises(EnvironmentUnavailable) as caught:
            stage(folder, download, model_of(DATA, URL, ALLOWED[0] + "mirror.gguf"))
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert asked == [0], "no other attempt, and no other address"
    stage(folder, download).close()
    assert asked == [0, BLOCK_BYTES]


def test_a_disk_that_others_fill_meanwhile_is_noticed_before_it_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_core.models.claims._WATCHED_BYTES", 1 << 20)
    free = [len(DATA), len(DATA) - (2 << 20)]
    have_free(monkeypatch, lambda: free.pop(0) if free else 0)
    asked: list[int] = []

    def download(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        body = Body(DATA[request.offset :], length=len(DATA) - request.offset)
        body.validator = '"v1"'
        return body

    with pytest.raises(EnvironmentUnavailable) as caught:
        stage(folder, download)
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert asked == [0]
    have_free(monkeypatch, lambda: len(DATA))
    stage(folder, download).close()
    assert asked == [0, 1 << 20]


def test_wrong_bytes_of_one_address_are_sought_at_the_next(folder: Path) -> None:
    second = ALLOWED[0] + "mirror.gguf"
    for wrong in (b"\1" + DATA[1:], DATA + b"x"):
        asked: list[str] = []

        def download(
            request: DownloadRequest, wrong: bytes = wrong, asked: list[str] = asked
        ) -> Body:
            asked.append(request.url)
            data = wrong if request.url == URL else DATA
            return Body(data, length=len(data))

        verified = stage(folder, download, model_of(DATA, URL, second))
        assert asked == [URL, second]
        Path(verified.files[0].path).unlink()
        verified.close()


def test_a_whole_download_has_a_deadline_and_keeps_what_came(folder: Path) -> None:
    """covers: download_stage/stall - however steadily its bytes drip."""
    asked: list[int] = []

    class Dripping(Body):
        def readinto(self, buffer: Any) -> int:
            threading.Event().wait(0.02)
            return super().readinto(memoryview(buffer)[:1000])

    def download(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        body = Dripping(DATA[request.offset :])
        body.validator = '"v1"'
        return body

    store = store_of(folder, whole_seconds=0.3)
    with pytest.raises(EnvironmentUnavailable) as caught:
        stage(folder, download, model_of(DATA, URL, ALLOWED[0] + "mirror.gguf"), store=store)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert len(asked) <= 2


def test_a_long_download_over_a_bad_line_has_more_attempts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt that brought much is worth as many further ones as the first."""
    monkeypatch.setattr("companion_core.models.transfer._MUCH_BYTES", 100_000)
    asked: list[int] = []

    def download(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        broken = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)
        rest = DATA[request.offset :]
        body = Body(rest[:200_000], length=len(rest), failure=broken)
        body.validator = '"v1"'
        return body

    stage(folder, download).close()
    assert asked == [*range(0, len(DATA), 200_000)]
