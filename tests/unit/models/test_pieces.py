"""A file whose pieces are known: proved by them, repaired piece by piece, resumed from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staging_parts import ALLOWED, URL, Body, names, store_of

from companion_core.decisions.manifest import Manifest, ManifestModel, verify_manifest
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.models import hashing
from companion_core.models import proof as model_proof
from companion_core.models.kept_parts import received
from companion_core.models.partial import Partial
from companion_core.models.store import VerifiedModel
from companion_core.providers import DownloadFailed, DownloadRequest, ResumeRefused
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

PIECE = 1 << 20
DATA = hashlib.shake_128(b"pieces").digest(5 * PIECE + PIECE // 2)
SHA256 = hashlib.sha256(DATA).hexdigest()
MIRROR = ALLOWED[0] + "mirror.gguf"


def model_of(
    *urls: str, signed_for: bytes = DATA, kind: ManifestKind = ManifestKind.PUBLISHER
) -> ManifestModel:
    """Return a model of `DATA` with the pieces of `signed_for`."""
    publisher, document = FakePublisher(), manifest_document(URL, DATA)
    file = document["models"][0]["files"][0]
    file["urls"] = list(urls)
    digests = [
        hashlib.sha256(signed_for[at : at + PIECE]).digest()
        for at in range(0, len(signed_for), PIECE)
    ]
    file["pieces"] = {"size": PIECE, "sha256": base64.b64encode(b"".join(digests)).decode()}
    manifest = verify_manifest(
        publisher.envelope(document, kind),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
        kind=kind,
    )
    assert isinstance(manifest, Manifest)
    return manifest.models[0]


class Host:
    """Honours ranges, and remembers what it was asked; `fails_after` so many bytes of an answer."""

    def __init__(self, data: bytes = DATA, *, validator: str | None = None) -> None:
        self.data = data
        self.validator = validator
        self.ranges = True
        self.bounds = True  # it does what `length` asks for; a plugin of before does not
        self.fails_after: int | None = None
        self.asked: list[tuple[str, int, int | None]] = []

    def __call__(self, request: DownloadRequest) -> Body:
        self.asked.append((request.url, request.offset, request.length))
        if request.offset and not self.ranges:
            raise ResumeRefused
        end = len(self.data)
        if self.bounds and request.length is not None:
            end = request.offset + request.length
        rest = self.data[request.offset : end]
        broken = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        body = Body(rest, length=len(rest))
        if self.fails_after is not None:
            body = Body(rest[: self.fails_after], length=len(rest), failure=broken)
        body.validator = self.validator
        return body


def never(_request: DownloadRequest) -> Body:
    raise AssertionError("nothing may be fetched")


def stage(
    folder: Path, download: Callable[[DownloadRequest], Any], model: Any = None, **options: Any
) -> VerifiedModel:
    chosen = model_of(URL) if model is None else model
    return store_of(folder).stage(chosen, allowed_sources=ALLOWED, download=download, **options)


def finish(folder: Path, download: Callable[[DownloadRequest], Any], *given: Any, **more: Any):
    verified = stage(folder, download, *given, **more)
    assert os.pread(verified.files[0].descriptor, len(DATA) + 1, 0) == DATA
    assert names(folder) == [SHA256]
    verified.close()


def flip(path: Path, *pieces: int) -> None:
    """Change a byte of each of these pieces."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        for index in pieces:
            file.seek(index * PIECE + 5)
            file.write(bytes([DATA[index * PIECE + 5] ^ 1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def stored(folder: Path) -> Path:
    finish(folder, Host())
    return folder / SHA256


@pytest.fixture
def hashed_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was hashed whole from now on."""
    calls: list[int] = []
    real = model_proof.hash_whole

    def counted(descriptor: int, *arguments: Any) -> Any:
        calls.append(descriptor)
        return real(descriptor, *arguments)

    monkeypatch.setattr(model_proof, "hash_whole", counted)
    return calls


def test_the_first_use_proves_the_whole_and_later_ones_the_pieces(
    folder: Path, hashed_whole: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(folder, Host())
    assert len(hashed_whole) == 1
    hashed_by: set[str] = set()
    real = hashing._digest

    def noted(*arguments: Any) -> bytes:
        hashed_by.add(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(hashing, "_digest", noted)
    monkeypatch.setattr(hashing, "_cores", lambda: 3)
    verified = stage(folder, never)
    verified.prove_again()
    verified.close()
    assert len(hashed_whole) == 1
    assert hashed_by
    assert all(name.startswith("companion-hash") for name in hashed_by)


@pytest.mark.parametrize("cores", [1, 3, 64])
@pytest.mark.parametrize("broken", [(), (0,), (5,), (0, 2, 5)])
def test_every_broken_piece_is_found(
    stored: Path, monkeypatch: pytest.MonkeyPatch, cores: int, broken: tuple[int, ...]
) -> None:
    monkeypatch.setattr(hashing, "_cores", lambda: cores)
    flip(stored, *broken)
    pieces = model_of(URL).files[0].pieces
    assert pieces is not None
    with stored.open("rb") as file:
        found = hashing.wrong_pieces(file.fileno(), pieces, threading.Event())
    assert found == broken


def test_the_search_for_broken_pieces_can_be_cancelled(stored: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    pieces = model_of(URL).files[0].pieces
    assert pieces is not None
    with stored.open("rb") as file, pytest.raises(CompanionError) as caught:
        hashing.wrong_pieces(file.fileno(), pieces, cancelled)
    assert caught.value.reason is Reason.INTERRUPTED


@pytest.mark.parametrize("validator", [None, '"v1"'])
def test_a_broken_piece_is_named_and_fetched_alone(
    folder: Path, stored: Path, validator: str | None
) -> None:
    flip(stored, 1, 5)
    host, told = Host(validator=validator), []
    finish(folder, host, repairs=told.append)
    assert host.asked == [(URL, PIECE, PIECE), (URL, 5 * PIECE, PIECE // 2)]
    assert told == ["tiny.gguf: pieces 2, 6 of 6"]


def test_a_downloader_that_knows_no_length_repairs_too(folder: Path, stored: Path) -> None:
    flip(stored, 1)
    host = Host()
    host.bounds = False
    finish(folder, host)
    assert host.asked == [(URL, PIECE, PIECE)]


def test_a_host_without_ranges_repairs_with_the_whole(folder: Path, stored: Path) -> None:
    flip(stored, 1)
    host = Host()
    host.ranges = False
    finish(folder, host)
    assert host.asked == [(URL, PIECE, PIECE), (URL, 0, None)]


def test_a_repair_that_brings_wrong_bytes_goes_to_the_next_address(
    folder: Path, stored: Path
) -> None:
    flip(stored, 3)
    wrong, right = Host(bytes(len(DATA))), Host()

    def both(request: DownloadRequest) -> Body:
        return (wrong if request.url == URL else right)(request)

    finish(folder, both, model_of(URL, MIRROR))
    assert wrong.asked == [(URL, 3 * PIECE, PIECE)]
    assert right.asked == [(MIRROR, 3 * PIECE, PIECE)]


def test_wrong_bytes_from_every_address_are_refused(folder: Path, stored: Path) -> None:
    flip(stored, 3)
    wrong = Host(bytes(len(DATA)))
    with pytest.raises(Refused) as caught:
        stage(folder, wrong, model_of(URL, MIRROR))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert caught.value.detail == "piece 4 of 6"
    assert len(wrong.asked) <= 4
    assert SHA256 not in names(folder)
    host = Host()
    finish(folder, host)
    assert host.asked == [(URL, 3 * PIECE, PIECE)], "the right pieces were kept"


def test_a_second_name_of_the_file_is_left_alone(
    folder: Path, stored: Path, tmp_path: Path
) -> None:
    """It may be the file that the person added, which is theirs to change."""
    flip(stored, 1)
    theirs = tmp_path / "theirs.gguf"
    theirs.hardlink_to(stored)
    before = theirs.read_bytes()
    host = Host()
    finish(folder, host)
    assert theirs.read_bytes() == before
    assert host.asked == [(URL, 0, None)]


def test_a_file_without_a_source_names_its_broken_pieces_and_stays(
    folder: Path, stored: Path
) -> None:
    flip(stored, 0)
    before = stored.read_bytes()
    with pytest.raises(Refused) as caught:
        stage(folder, never, model_of(kind=ManifestKind.PERSONAL))
    assert "was changed (piece 1 of 6)" in caught.value.detail
    assert stored.read_bytes() == before


def test_pieces_of_something_else_do_not_refute_the_whole(folder: Path) -> None:
    """The digest of the whole was signed as well, and it is what the file is named after."""
    disagreeing = model_of(URL, signed_for=bytes(len(DATA)))
    finish(folder, Host(), disagreeing)
    finish(folder, never, disagreeing)


def test_wrong_bytes_are_no_model_whatever_their_pieces_say(folder: Path) -> None:
    evil = bytes(len(DATA))
    with pytest.raises(Refused):
        stage(folder, Host(evil), model_of(URL, signed_for=evil))
    assert names(folder) == []


def test_a_byte_that_broke_on_the_way_costs_one_piece(folder: Path) -> None:
    host, told = Host(), []

    def flips_once(request: DownloadRequest) -> Body:
        host.data = DATA if host.asked else DATA[:-1] + bytes([DATA[-1] ^ 1])
        return host(request)

    finish(folder, flips_once, repairs=told.append)
    assert host.asked == [(URL, 0, None), (URL, 5 * PIECE, PIECE // 2)]
    assert told == ["tiny.gguf: piece 6 of 6"]


def cut(folder: Path, after: int, *urls: str, validator: str | None = None) -> None:
    host = Host(validator=validator)
    host.fails_after = after
    with pytest.raises(EnvironmentUnavailable):
        stage(folder, host, model_of(*(urls or (URL,))))
    assert received(folder, SHA256) == after


def test_it_is_resumed_without_a_validator(folder: Path) -> None:
    cut(folder, 2 * PIECE + 9)
    host = Host()
    finish(folder, host)
    assert host.asked == [(URL, 2 * PIECE + 9, len(DATA) - 2 * PIECE - 9)]


def test_it_is_resumed_from_another_address(folder: Path) -> None:
    cut(folder, 2 * PIECE, validator='"v1"')
    host = Host(validator='"v9"')
    finish(folder, host, model_of(MIRROR))
    assert host.asked == [(MIRROR, 2 * PIECE, len(DATA) - 2 * PIECE)]


def test_what_is_there_is_proved_piece_by_piece(folder: Path) -> None:
    cut(folder, 3 * PIECE + 9)
    flip(folder / f".{SHA256}.part", 1)
    host, told = Host(), []
    finish(folder, host, repairs=told.append)
    assert told == ["tiny.gguf: piece 2 of 6"]
    assert sorted(host.asked) == [
        (URL, PIECE, PIECE),
        (URL, 3 * PIECE + 9, len(DATA) - 3 * PIECE - 9),
    ]


def test_a_wrong_byte_after_the_last_whole_piece_costs_that_piece(folder: Path) -> None:
    cut(folder, 3 * PIECE + 9)
    flip(folder / f".{SHA256}.part", 3)
    host = Host()
    finish(folder, host)
    assert host.asked[-1] == (URL, 3 * PIECE, PIECE)


def test_a_repair_that_is_killed_is_gone_on_with(folder: Path, stored: Path) -> None:
    """Between the two steps by which a stored file becomes one that is being received."""
    flip(stored, 2)
    model = model_of(URL)
    pieces = model.files[0].pieces
    assert pieces is not None
    assert Partial.adopt(folder, model.files[0].spec, pieces, [2])
    assert SHA256 not in names(folder)
    assert received(folder, SHA256) == len(DATA) - PIECE
    host = Host()
    finish(folder, host)
    assert host.asked == [(URL, 2 * PIECE, PIECE)]


def test_a_record_whose_file_is_shorter_claims_nothing_beyond_it(folder: Path) -> None:
    cut(folder, 3 * PIECE)
    record = folder / f".{SHA256}.resume"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "have": [[0, PIECE], [2 * PIECE, 5 * PIECE]]}))
    assert received(folder, SHA256) == 2 * PIECE
    host = Host()
    finish(folder, host)
    assert host.asked[0] == (URL, PIECE, PIECE)
