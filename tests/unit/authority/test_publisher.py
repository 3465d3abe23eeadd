from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.publisher import (
    Measured,
    add_file,
    files_of,
    init_draft,
    measure,
    parse_lifetime,
    remove_entry,
    sign_draft,
    verify_file,
)
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.errors import CompanionError, Reason, Refused, UsageError

pytestmark = pytest.mark.unit

NOW = dt.datetime(2026, 1, 15, 12, 0, 0, 900_000, tzinfo=dt.UTC)
URL = "https://models.example.org/companion/tiny.gguf"
MONTH = dt.timedelta(days=30)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"


@pytest.fixture
def draft(tmp_path: Path, key_file: Path) -> tuple[Path, str]:
    folder = tmp_path / "publish"
    return folder, init_draft(folder, key_file)


def add(folder: Path, data: bytes = b"model", **changes: Any) -> str:
    measured = measure(io.BytesIO(data).readinto)
    options = {"model_id": "tiny", "url": URL, "model_format": "gguf", **changes}
    return add_file(folder, measured, **options)


def test_measure_reads_to_the_end() -> None:
    data = os.urandom(3_000_000)
    measured = measure(io.BytesIO(data).readinto)
    digest = hashlib.sha256(data)
    assert measured == Measured(len(data), digest.hexdigest(), digest.digest())


def test_what_is_signed_has_the_digest_of_each_piece(
    draft: tuple[Path, str], key_file: Path
) -> None:
    folder, _ = draft
    data = bytes(PIECE_BYTES) + b"the second piece"
    add(folder, data)
    [file] = sign_draft(folder, key_file, lifetime=MONTH, now=NOW).manifest.models[0].files
    assert file.pieces is not None
    assert (file.pieces.size, len(file.pieces)) == (PIECE_BYTES, 2)
    for index, piece in enumerate((data[:PIECE_BYTES], data[PIECE_BYTES:])):
        assert file.pieces.is_right(index, hashlib.sha256(piece).digest())


def test_pieces_that_a_manifest_cannot_hold_are_left_out_of_the_largest_files(
    draft: tuple[Path, str], key_file: Path
) -> None:
    folder, _ = draft
    for index, count in enumerate((10, 3000, 2000, 20)):
        size = count * PIECE_BYTES
        measured = Measured(size, hashlib.sha256(bytes([index])).hexdigest(), bytes(32 * count))
        url = f"https://models.example.org/companion/{index}.gguf"
        add_file(folder, measured, model_id=f"m{index}", url=url, model_format="gguf")
    models = sign_draft(folder, key_file, lifetime=MONTH, now=NOW).manifest.models
    assert [model.files[0].pieces is not None for model in models] == [True, False, True, True]


def test_the_key_is_private_and_never_overwritten(
    draft: tuple[Path, str], key_file: Path, tmp_path: Path
) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    before = key_file.read_bytes()
    with pytest.raises(UsageError):
        init_draft(tmp_path / "other", key_file)
    assert key_file.read_bytes() == before


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, key_file: Path) -> None:
    (tmp_path / "publish").mkdir()
    (tmp_path / "publish" / "precious").write_text("mine")
    with pytest.raises(UsageError):
        init_draft(tmp_path / "publish", key_file)
    assert not key_file.exists()


def test_what_is_signed_is_what_a_reader_accepts(draft: tuple[Path, str], key_file: Path) -> None:
    folder, public_key = draft
    assert add(folder, licence="Apache-2.0", chat_template="{{ x }}") == "tiny.gguf"
    signed = sign_draft(folder, key_file, lifetime=MONTH, now=NOW)
    assert signed.path == folder / "manifest.json"
    manifest = verify_file(signed.path, [public_key], now=NOW)
    assert manifest == signed.manifest
    assert manifest.version == 1
    assert manifest.issued == NOW.replace(microsecond=0).timestamp()
    assert manifest.expires - manifest.issued == MONTH.total_seconds()
    assert manifest.allowed_sources == ("https://models.example.org/companion/",)
    assert (manifest.models[0].licence, manifest.models[0].chat_template) == (
        "Apache-2.0",
        "{{ x }}",
    )
    assert signed.path.stat().st_mode & 0o777 == 0o644


def test_the_version_only_grows(draft: tuple[Path, str], key_file: Path) -> None:
    folder, _ = draft
    add(folder)
    first = sign_draft(folder, key_file, lifetime=MONTH, now=NOW)
    first.path.unlink()
    second = sign_draft(folder, key_file, lifetime=MONTH, now=NOW)
    assert (first.manifest.version, second.manifest.version) == (1, 2)


def test_a_model_of_several_files(draft: tuple[Path, str], key_file: Path) -> None:
    folder, _ = draft
    add(folder)
    add(folder, b"second", url="https://cdn.example.org/b.gguf")
    add(folder, b"replaced")
    manifest = sign_draft(folder, key_file, lifetime=MONTH, now=NOW).manifest
    [model] = manifest.models
    assert [(file.name, file.size) for file in model.files] == [("b.gguf", 6), ("tiny.gguf", 8)]
    assert manifest.allowed_sources == (
        "https://models.example.org/companion/",
        "https://cdn.example.org/",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "http://models.example.org/tiny.gguf"}, Reason.SCHEME_NOT_ALLOWED),
        ({"url": "https://u@models.example.org/tiny.gguf"}, Reason.SOURCE_NOT_ALLOWED),
        ({"url": "nonsense"}, Reason.MALFORMED_SPEC),
        ({"url": "https://models.example.org/"}, Reason.USAGE),
        ({"url": "https://models.example.org/.hidden"}, Reason.USAGE),
        ({"model_id": "../tiny"}, Reason.USAGE),
        ({"model_format": "GGUF"}, Reason.USAGE),
        ({"licence": "a\nb"}, Reason.USAGE),
        ({"data": b""}, Reason.USAGE),
    ],
)
def test_what_no_manifest_can_hold_is_not_entered(
    draft: tuple[Path, str], changes: dict[str, Any], reason: Reason
) -> None:
    folder, _ = draft
    before = (folder / "draft.json").read_bytes()
    with pytest.raises(CompanionError) as caught:
        add(folder, **changes)
    assert caught.value.reason is reason
    assert (folder / "draft.json").read_bytes() == before


def test_another_format_under_the_same_id(draft: tuple[Path, str]) -> None:
    folder, _ = draft
    add(folder)
    with pytest.raises(UsageError):
        add(folder, model_format="mlx")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("45m", 2700), ("90s", 90)]
)
def test_lifetimes(text: str, seconds: int) -> None:
    assert parse_lifetime(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "367d", "1w", "1.5d", "٣d", "30d "])
def test_what_is_no_lifetime(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lifetime(text)


def test_an_empty_draft_is_not_signed(draft: tuple[Path, str], key_file: Path) -> None:
    with pytest.raises(UsageError):
        sign_draft(draft[0], key_file, lifetime=MONTH, now=NOW)


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"[]", b'{"version": 1}'])
def test_a_missing_or_damaged_draft(
    draft: tuple[Path, str], key_file: Path, content: bytes | None
) -> None:
    path = draft[0] / "draft.json"
    path.unlink() if content is None else path.write_bytes(content)
    for call in (
        lambda: add(draft[0]),
        lambda: sign_draft(draft[0], key_file, lifetime=MONTH, now=NOW),
    ):
        with pytest.raises(UsageError):
            call()


def test_a_hand_edited_draft_is_not_signed_into_something_unreadable(
    draft: tuple[Path, str], key_file: Path
) -> None:
    folder, _ = draft
    add(folder)
    document = json.loads((folder / "draft.json").read_text())
    document["models"][0]["files"][0]["urls"] = ["http://models.example.org/companion/tiny.gguf"]
    (folder / "draft.json").write_text(json.dumps(document))
    with pytest.raises(Refused) as caught:
        sign_draft(folder, key_file, lifetime=MONTH, now=NOW)
    assert caught.value.reason is Reason.SCHEME_NOT_ALLOWED
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_missing_or_damaged_key(
    draft: tuple[Path, str], key_file: Path, content: bytes | None
) -> None:
    add(draft[0])
    key_file.unlink() if content is None else key_file.write_bytes(content)
    with pytest.raises(UsageError):
        sign_draft(draft[0], key_file, lifetime=MONTH, now=NOW)


def test_a_key_of_another_kind(draft: tuple[Path, str], key_file: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - heavy, for one test
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - heavy, for one test

    add(draft[0])
    other = ec.generate_private_key(ec.SECP256R1())
    key_file.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(UsageError):
        sign_draft(draft[0], key_file, lifetime=MONTH, now=NOW)


def test_verify_says_why_not(draft: tuple[Path, str], key_file: Path, tmp_path: Path) -> None:
    folder, public_key = draft
    add(folder)
    signed = sign_draft(folder, key_file, lifetime=MONTH, now=NOW)
    stranger = init_draft(tmp_path / "other", tmp_path / "other.pem")

    def reason(path: Path, key: str, now: dt.datetime) -> Reason:
        with pytest.raises(CompanionError) as caught:
            verify_file(path, [key], now=now)
        return caught.value.reason

    assert reason(signed.path, stranger, NOW) is Reason.MANIFEST_SIGNATURE_INVALID
    assert reason(signed.path, public_key, NOW + MONTH) is Reason.MANIFEST_EXPIRED
    assert reason(signed.path, public_key, NOW - MONTH) is Reason.MANIFEST_NOT_YET_VALID
    assert reason(folder / "nothing", public_key, NOW) is Reason.MANIFEST_UNAVAILABLE


def enter(folder: Path, model_id: str, url: str) -> None:
    measured = measure(io.BytesIO(b"other").readinto)
    add_file(folder, measured, model_id=model_id, url=url, model_format="gguf")


def test_a_model_leaves_the_draft_with_its_source(draft: tuple[Path, str]) -> None:
    folder, kept = draft[0], "kept"
    enter(folder, kept, "https://models.example/companion/kept.gguf")
    before = json.loads((folder / "draft.json").read_text())
    for name in ("a.gguf", "b.gguf"):
        enter(folder, "other", f"https://elsewhere.example/other/{name}")
    assert remove_entry(folder, "other", name="a.gguf") == ["a.gguf"]
    assert files_of(folder, "other") == ["b.gguf"]
    assert remove_entry(folder, "other") == ["b.gguf"]
    after = json.loads((folder / "draft.json").read_text())
    assert [model["id"] for model in after["models"]] == [kept]
    assert after["allowed_sources"] == before["allowed_sources"]


@pytest.mark.parametrize(("model_id", "name"), [("nobody", None), (None, "nothing.gguf")])
def test_what_the_draft_does_not_have_is_named(
    draft: tuple[Path, str], model_id: str | None, name: str | None
) -> None:
    folder, known = draft[0], "known"
    enter(folder, known, "https://models.example/companion/known.gguf")
    before = (folder / "draft.json").read_text()
    with pytest.raises(UsageError) as caught:
        remove_entry(folder, model_id or known, name=name)
    assert known in caught.value.detail
    assert (folder / "draft.json").read_text() == before
