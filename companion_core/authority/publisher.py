"""The publisher's side: make a key, list models, sign the list (`companion manifest`).

A folder holds `draft.json`, which grows with each `add`, and `manifest.json`, which `sign`
writes from it. The reader's own rule checks a signed manifest before it is written.

The private key lives in its file and, while it signs, inside `cryptography`; nothing here holds
its text as a value.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from companion_core.authority.own_model import rfc3339
from companion_core.authority.signing_key import SigningKey
from companion_core.decisions.manifest import (
    MAX_MANIFEST_BYTES,
    SCHEMA,
    Manifest,
    check_payload,
    verify_manifest,
)
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.strict_json import parse_json
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason, UsageError, error_for
from companion_core.system.lacks import lack_of
from companion_core.system.os_compat import NO_FOLLOW
from companion_core.system.piecewise import PiecewiseHash
from companion_core.system.state_files import open_ordinary, write_private

__all__ = [
    "Measured",
    "Signed",
    "add_file",
    "files_of",
    "init_draft",
    "measure",
    "parse_lifetime",
    "remove_entry",
    "sign_draft",
    "verify_file",
]

DRAFT: Final = "draft.json"
MANIFEST: Final = "manifest.json"
MAX_KEY_BYTES: Final = 4096
MAX_LIFETIME: Final = dt.timedelta(days=366)
_BLOCK_BYTES: Final = 1 << 20
_SIGNATURES_BYTES: Final = 8 * 1024  # what an envelope holds beside the payload, and to spare
_LIFETIME = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's size in bytes and its SHA-256 in lower-case hex.

    Attributes:
        pieces: the SHA-256 of each `PIECE_BYTES`, one after the other; empty if not known.
    """

    size: int
    sha256: str
    pieces: bytes = b""


@dataclass(frozen=True, slots=True)
class Signed:
    """The manifest that `sign_draft` wrote, and where."""

    path: Path
    manifest: Manifest


def init_draft(folder: Path, key_file: Path) -> str:
    """Start a draft in an empty or missing folder and return the public key.

    Args:
        folder: gets `draft.json`.
        key_file: gets the private key (PKCS #8 PEM, 0600). Never overwritten.

    Raises:
        UsageError: something is there already.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    key = SigningKey.generate()
    pem = key.pem()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(Reason.USAGE, f"{folder} is not empty")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
        with os.fdopen(os.open(key_file, flags, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise UsageError(Reason.USAGE, f"{error.filename} is already there") from error
    except OSError as error:
        raise lack_of(error) from error
    _write(folder / DRAFT, {"version": 0, "allowed_sources": [], "models": []})
    return key.public_text


def measure(read: Callable[[memoryview], int | None]) -> Measured:
    """Read a stream to its end, block by block; return its size and digest, and of each piece."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    with PiecewiseHash(PIECE_BYTES) as digest:
        while count := read(buffer):
            digest.update(buffer[:count])
    return Measured(digest.size, digest.sha256, digest.pieces)


def add_file(
    folder: Path,
    measured: Measured,
    *,
    model_id: str,
    url: str,
    model_format: str,
    licence: str | None = None,
    chat_template: str | None = None,
) -> str:
    """Enter one file into the draft and return its name, which is the end of its address.

    A second file under the same id makes a model of several files; a file of the same name
    replaces the earlier entry. The address's folder becomes an allowed source. The digests of the
    pieces are entered as well, and left out of the largest files where a manifest cannot hold them.

    Raises:
        UsageError: the format differs from the model's, or a manifest cannot hold the entry.
        Refused: the address is no https address.
    """
    parsed = parse_https_url(url)
    if isinstance(parsed, Verdict):
        raise error_for(parsed.reason)
    parent, _, name = parsed.path.rpartition("/")
    if not name:
        raise UsageError(Reason.USAGE, "--url must end in a file's name")
    draft = _draft(folder)
    source = HttpsUrl(parsed.host, parsed.port, parent + "/", "").text
    if source not in draft["allowed_sources"]:
        draft["allowed_sources"].append(source)
    model: dict[str, Any] | None
    model = next((entry for entry in draft["models"] if entry["id"] == model_id), None)
    if model is None:
        model = {"id": model_id, "format": model_format, "files": []}
        draft["models"].append(model)
    if model["format"] != model_format:
        raise UsageError(Reason.USAGE, f"{model_id} is already entered as {model['format']}")
    for key, value in (("licence", licence), ("chat_template", chat_template)):
        model[key] = model.get(key) if value is None else value
    entry: dict[str, Any] = {
        "name": name,
        "size": measured.size,
        "sha256": measured.sha256,
        "urls": [parsed.text],
    }
    if measured.pieces:
        digests = base64.b64encode(measured.pieces).decode("ascii")
        entry["pieces"] = {"size": PIECE_BYTES, "sha256": digests}
    model["files"] = [*(file for file in model["files"] if file["name"] != name), entry]
    moment = dt.datetime.fromtimestamp(0, tz=dt.UTC)
    _leave_out_pieces(draft, lambda: len(_payload(draft, moment, moment)))
    if not check_payload(_payload(draft, moment, moment + MAX_LIFETIME)).ok:
        message = "a manifest cannot hold this id, format, file name, size, licence or template"
        raise UsageError(Reason.USAGE, message)
    _write(folder / DRAFT, draft)
    return name


def remove_entry(folder: Path, model_id: str, *, name: str | None = None) -> list[str]:
    """Take a model, or one of its files, out of the draft; return the names of its files that went.

    A source that no file is fetched from any more is allowed no longer. The next signature says so
    to readers; a manifest that was signed before stays as it is until it expires.

    Args:
        folder: of the draft.
        model_id: of the model.
        name: of the file; None for the whole model.

    Raises:
        UsageError: the draft has no such model or file.
    """
    draft = _draft(folder)
    model = next((entry for entry in draft["models"] if entry["id"] == model_id), None)
    if model is None:
        known = ", ".join(entry["id"] for entry in draft["models"]) or "it is empty"
        raise UsageError(Reason.USAGE, f"the draft has no model {model_id}: {known}")
    names = [file["name"] for file in model["files"]]
    gone = names if name is None else [each for each in names if each == name]
    if not gone:
        raise UsageError(Reason.USAGE, f"{model_id} has no file {name}: {', '.join(names)}")
    before = _sources(draft)
    model["files"] = [file for file in model["files"] if file["name"] not in gone]
    if not model["files"]:
        draft["models"].remove(model)
    unused = before - _sources(draft)
    draft["allowed_sources"] = [each for each in draft["allowed_sources"] if each not in unused]
    _write(folder / DRAFT, draft)
    return gone


def _sources(draft: dict[str, Any]) -> set[str]:
    """Return the folders of the addresses that files are fetched from."""
    urls = [url for model in draft["models"] for file in model["files"] for url in file["urls"]]
    return {url.rpartition("/")[0] + "/" for url in urls}


def files_of(folder: Path, model_id: str) -> list[str]:
    """Return the names of the files that a model of the draft has."""
    models = _draft(folder)["models"]
    return [file["name"] for model in models if model["id"] == model_id for file in model["files"]]


def _leave_out_pieces(draft: dict[str, Any], payload_bytes: Callable[[], int]) -> None:
    """Take the longest lists of pieces out of a draft, until its envelope is not too long."""
    files = [file for model in draft["models"] for file in model["files"] if "pieces" in file]
    files.sort(key=lambda file: int(file["size"]))
    # The envelope has the payload in base64.
    while files and payload_bytes() * 4 // 3 > MAX_MANIFEST_BYTES - _SIGNATURES_BYTES:
        del files.pop()["pieces"]


def parse_lifetime(text: str) -> dt.timedelta:
    """Return the time that "30d", "12h", "45m" or "90s" names.

    Raises:
        UsageError: the text names no time, or more than a year.
    """
    match = _LIFETIME.fullmatch(text)
    lifetime = None if match is None else dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
    if lifetime is None or lifetime > MAX_LIFETIME:
        raise UsageError(Reason.USAGE, "--expires is a number and s, m, h or d, up to 366d")
    return lifetime


def sign_draft(folder: Path, key_file: Path, *, lifetime: dt.timedelta, now: dt.datetime) -> Signed:
    """Write `manifest.json` from the draft, under the next version.

    Args:
        folder: with a draft.
        key_file: the private key of `init_draft`.
        lifetime: from `now` until the manifest expires.
        now: aware; cut to the second.

    Raises:
        UsageError: the draft or the key is missing.
        CompanionError: a reader would refuse the result, for this reason.
    """
    draft = _draft(folder)
    if not draft["models"]:
        raise UsageError(Reason.USAGE, "the draft lists no model; companion manifest add first")
    key = _private_key(key_file)
    issued = now.astimezone(dt.UTC).replace(microsecond=0)
    payload = _payload(draft, issued, issued + lifetime)
    raw = key.sign_envelope(payload, ManifestKind.PUBLISHER)
    manifest = verify_manifest(
        raw, trusted_keys=[key.public_text], now=issued.timestamp(), last_seen=None
    )
    if isinstance(manifest, Verdict):
        raise error_for(manifest.reason)
    # The version is written first: a crash between the two skips a number and never uses one twice.
    _write(folder / DRAFT, {**draft, "version": manifest.version})
    path = folder / MANIFEST
    write_private(path, raw)
    path.chmod(0o644)  # a web server has to read it
    return Signed(path, manifest)


def verify_file(path: Path, trusted_keys: list[str], *, now: dt.datetime) -> Manifest:
    """Return the manifest if a reader with these keys would accept it, or raise why not."""
    try:
        with open_ordinary(path) as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise lack_of(error, Reason.MANIFEST_UNAVAILABLE, path=path) from error
    manifest = verify_manifest(raw, trusted_keys=trusted_keys, now=now.timestamp(), last_seen=None)
    if isinstance(manifest, Verdict):
        raise error_for(manifest.reason)
    return manifest


def _draft(folder: Path) -> dict[str, Any]:
    try:
        with open_ordinary(folder / DRAFT) as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        message = f"no draft in {folder}; start one with companion manifest init"
        raise UsageError(Reason.USAGE, message) from error
    match parse_json(raw, limit=MAX_MANIFEST_BYTES):
        case {"version": int(), "allowed_sources": list(), "models": list()} as draft:
            return dict(draft)
    raise UsageError(Reason.USAGE, f"damaged: {folder / DRAFT}")


def _payload(draft: dict[str, Any], issued: dt.datetime, expires: dt.datetime) -> bytes:
    document = {
        "schema": SCHEMA,
        "version": draft["version"] + 1,
        "issued": rfc3339(issued),
        "expires": rfc3339(expires),
        "allowed_sources": draft["allowed_sources"],
        "models": draft["models"],
    }
    return json.dumps(document, indent=1).encode("ascii")


def _write(path: Path, document: dict[str, Any]) -> None:
    write_private(path, (json.dumps(document, indent=2) + "\n").encode("ascii"))


def _private_key(key_file: Path) -> SigningKey:
    try:
        with key_file.open("rb") as file:
            key = SigningKey.of_pem(file.read(MAX_KEY_BYTES))
    except OSError as error:
        raise UsageError(Reason.USAGE, f"no private key in {key_file}") from error
    if key is None:
        raise UsageError(Reason.USAGE, f"no Ed25519 key in {key_file}")
    return key
