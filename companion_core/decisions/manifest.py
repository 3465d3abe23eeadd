"""Rules: models, digests and sources come from a signed, current, never-older manifest (I-02).

A manifest is a publisher's, or the person's own. The two have payload types of their own, so that
a signature of one kind never counts for the other.

The signature is checked over bytes, and only signed bytes are read. Imports no I/O and no
clock: `now` and what was seen before are arguments. Never raises on bad input.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.integrity import MAX_SIZE, ModelSpec, parse_model_spec
from companion_core.decisions.manifest_kind import (
    MAX_MANIFEST_BYTES,
    PAYLOAD_TYPE,
    ManifestKind,
    Role,
)
from companion_core.decisions.numbers import is_finite
from companion_core.decisions.pieces import Pieces, parse_pieces
from companion_core.decisions.signatures import (
    parse_public_key,
    pre_authentication_encoding,
    trusted_signers,
)
from companion_core.decisions.source import (
    SourceUrl,
    admit_source,
    check_source_url,
    parse_https_url,
)
from companion_core.decisions.strict_json import MALFORMED, decode_base64, parse_json
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = [
    "MAX_MANIFEST_BYTES",
    "PAYLOAD_TYPE",
    "LastSeen",
    "Manifest",
    "ManifestFile",
    "ManifestKind",
    "ManifestModel",
    "Role",
    "check_manifest_origin",
    "check_payload",
    "check_trust_anchor",
    "pre_authentication_encoding",
    "verify_manifest",
]

SCHEMA: Final = 1
MAX_MODELS: Final = 100
MAX_FILES: Final = 1000
MAX_SIGNATURES: Final = 16
MAX_SOURCES: Final = 100
MAX_URLS: Final = 10
MAX_TEMPLATE: Final = 64 * 1024
CLOCK_SKEW_SECONDS: Final = 300.0

_MODEL_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]{0,126}[A-Za-z0-9_+-])?")
_FORMAT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_LICENCE = re.compile(r"[\x20-\x7e]{1,128}")
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class ManifestFile(Evidence):
    """One file of a model: what its bytes must be, and where they may be fetched.

    Both are proved here and nowhere again; only a redirect is a new address, and is checked.

    Attributes:
        pieces: the digest of each piece, where the manifest lists them.
    """

    name: str
    spec: ModelSpec
    urls: tuple[SourceUrl, ...]
    role: Role = Role.MODEL
    pieces: Pieces | None = None

    @property
    def sha256(self) -> str:
        """The digest that `spec` has."""
        return self.spec.sha256

    @property
    def size(self) -> int:
        """The size that `spec` has, in bytes."""
        return self.spec.size


@dataclass(frozen=True, slots=True)
class ManifestModel(Evidence):
    """One model that the publisher vouches for; `files` are in the order they were signed."""

    id: str
    format: str
    licence: str | None
    chat_template: str | None
    files: tuple[ManifestFile, ...]


@dataclass(frozen=True, slots=True)
class Manifest(Evidence):
    """Proof that a trusted key signed this list and that it holds now.

    Attributes:
        issued: seconds since the epoch, as is `expires`.
        payload_sha256: of the signed bytes; the next manifest is compared with it and `version`.
        signers: the ids of the trusted keys that signed it.
        kind: who vouches for its models.
    """

    version: int
    issued: float
    expires: float
    allowed_sources: tuple[str, ...]
    models: tuple[ManifestModel, ...]
    payload_sha256: str
    signers: tuple[str, ...]
    kind: ManifestKind = ManifestKind.PUBLISHER


@dataclass(frozen=True, slots=True)
class LastSeen:
    """The newest manifest that was accepted before."""

    version: int
    payload_sha256: str


class _Malformed(Exception):
    """Leaves the parser; never leaves this module."""

    def __init__(self, reason: Reason = Reason.MANIFEST_MALFORMED) -> None:
        super().__init__(reason.value)
        self.reason = reason


def verify_manifest(
    raw: bytes,
    *,
    trusted_keys: Sequence[str],
    now: float,
    last_seen: LastSeen | None,
    kind: ManifestKind = ManifestKind.PUBLISHER,
) -> Manifest | Verdict:
    """Return the manifest that `raw` proves, or the reason why it proves none.

    Args:
        raw: the envelope, at most 256 KiB for a publisher's.
        trusted_keys: "ed25519:BASE64", at least one; a malformed one refuses everything.
        now: wall time in seconds since the epoch, never earlier than any seen before.
        last_seen: an older version is refused, and so are other bytes under the same version.
        kind: which one is asked for; a manifest of the other kind is malformed.
    """
    try:
        payload, signers = _signed_payload(raw, trusted_keys, kind)
        manifest = _manifest(payload, signers, kind)
    except _Malformed as malformed:
        return refuse(malformed.reason)
    if last_seen is not None:
        same = manifest.payload_sha256 == last_seen.payload_sha256
        if manifest.version < last_seen.version:
            return refuse(Reason.MANIFEST_ROLLED_BACK)
        if manifest.version == last_seen.version and not same:
            return refuse(Reason.MANIFEST_ROLLED_BACK)
    if not is_finite(now) or manifest.issued > now + CLOCK_SKEW_SECONDS:
        return refuse(Reason.MANIFEST_NOT_YET_VALID)
    if manifest.expires <= now:
        return refuse(Reason.MANIFEST_EXPIRED)
    return manifest


def check_payload(payload: bytes, kind: ManifestKind = ManifestKind.PUBLISHER) -> Verdict:
    """Say whether a payload would be a manifest if it were signed; its dates are not judged."""
    try:
        _manifest(payload, (), kind)
    except _Malformed as malformed:
        return refuse(malformed.reason)
    return OK


def check_manifest_origin(manifest_url: object, model_urls: object) -> Verdict:
    """Refuse a manifest that comes from the host of a model it vouches for (I-02).

    A manifest in a file has no host: its signature alone is the anchor.

    Args:
        manifest_url: where the manifest was read.
        model_urls: a list or tuple of the models' addresses, each a text or a `SourceUrl`.
    """
    if not isinstance(model_urls, list | tuple) or not model_urls:
        return refuse(Reason.MANIFEST_UNTRUSTED)
    in_file = type(manifest_url) is str and manifest_url.startswith("file:///")
    origin = None if in_file else parse_https_url(manifest_url)
    for url in model_urls:
        model = url if type(url) is SourceUrl else parse_https_url(url)
        if isinstance(origin, Verdict) or isinstance(model, Verdict):
            return refuse(Reason.MANIFEST_UNTRUSTED)
        if origin is not None and origin.host == model.host:
            return refuse(Reason.MANIFEST_UNTRUSTED)
    return OK


def check_trust_anchor(
    manifest: object,
    *,
    manifest_url: object,
    model_url: object,
    sha256: object,
    size: object,
    allowed: object,
) -> Verdict:
    """Decide whether a manifest may vouch for one file (I-02, I-03).

    Order: the manifest is proved, its origin is another, the source is allowed, the
    specification is whole. Only the known answers of `tests/vectors` ask all four at once:
    `verify_manifest` has proved the last two of every file, so that `fetch_manifest` asks
    `check_manifest_origin` alone.
    """
    if type(manifest) is not Manifest:
        return refuse(Reason.MANIFEST_UNTRUSTED)
    origin = check_manifest_origin(manifest_url, (model_url,))
    if not origin.ok:
        return origin
    source = check_source_url(model_url, allowed)
    if not source.ok:
        return source
    spec = parse_model_spec(sha256, size)
    return spec if isinstance(spec, Verdict) else OK


# --- the envelope ---------------------------------------------------------------------------


def _signed_payload(
    raw: object, trusted_keys: Sequence[str], kind: ManifestKind
) -> tuple[bytes, tuple[str, ...]]:
    envelope = parse_json(raw, limit=kind.max_bytes)
    payload_type, encoded, entries = _fields(envelope, "payload_type", "payload", "signatures")
    payload = decode_base64(encoded)
    if payload_type != kind.payload_type or payload is None:
        raise _Malformed
    signatures = [_signature(entry) for entry in _list(entries, MAX_SIGNATURES, least=0)]
    keys = [parse_public_key(key) for key in trusted_keys]
    trusted = [key for key in keys if key is not None]
    message = pre_authentication_encoding(kind.payload_type, payload)
    signers = trusted_signers(signatures, trusted, message)
    if len(trusted) != len(keys) or not signers:
        raise _Malformed(Reason.MANIFEST_SIGNATURE_INVALID)
    return payload, signers


def _signature(entry: object) -> tuple[str, bytes]:
    name, encoded = _fields(entry, "key_id", "signature")
    signature = decode_base64(encoded)
    # A malformed signature counts as an invalid one, so that both have the same reason.
    return str(name), b"" if signature is None else signature


# --- the payload ----------------------------------------------------------------------------


def _manifest(payload: bytes, signers: tuple[str, ...], kind: ManifestKind) -> Manifest:
    document = parse_json(payload, limit=kind.max_bytes)
    schema, version, issued, expires, sources, models = _fields(
        document, "schema", "version", "issued", "expires", "allowed_sources", "models"
    )
    if type(schema) is not int or schema != SCHEMA:
        raise _Malformed
    if type(version) is not int or not 0 < version <= MAX_SIZE:
        raise _Malformed
    begin, end = _instant(issued), _instant(expires)
    if begin >= end:
        raise _Malformed
    least = kind.least_sources
    allowed = tuple(_source(entry) for entry in _list(sources, MAX_SOURCES, least=least))
    parsed = tuple(_model(entry, allowed, least) for entry in _list(models, MAX_MODELS))
    if len({model.id for model in parsed}) != len(parsed):
        raise _Malformed
    if sum(len(model.files) for model in parsed) > MAX_FILES:
        raise _Malformed
    digest = hashlib.sha256(payload).hexdigest()
    return Manifest(version, begin, end, allowed, parsed, digest, signers, kind)


def _source(entry: object) -> str:
    parsed = parse_https_url(entry)
    if isinstance(parsed, Verdict):
        raise _Malformed(parsed.reason)
    if parsed.query or "#" in str(entry):
        raise _Malformed(Reason.SOURCE_NOT_ALLOWED)
    return parsed.text


def _model(entry: object, allowed: tuple[str, ...], least_sources: int) -> ManifestModel:
    model_id, kind, files, licence, template = _fields(
        entry, "id", "format", "files", optional=("licence", "chat_template")
    )
    if licence is not None:
        _text(licence, _LICENCE)
    if template is not None and (type(template) is not str or len(template) > MAX_TEMPLATE):
        raise _Malformed
    parsed = tuple(_file(item, allowed, least_sources) for item in _list(files, MAX_FILES))
    if len({file.name.casefold() for file in parsed}) != len(parsed):
        raise _Malformed
    if all(file.role is not Role.MODEL for file in parsed):
        raise _Malformed
    return ManifestModel(
        _text(model_id, _MODEL_ID), _text(kind, _FORMAT), licence, template, parsed
    )


def _file(entry: object, allowed: tuple[str, ...], least_sources: int) -> ManifestFile:
    name, size, sha256, urls, role, digests = _fields(
        entry, "name", "size", "sha256", "urls", optional=("role", "pieces")
    )
    spec = parse_model_spec(sha256, size)
    if isinstance(spec, Verdict):
        raise _Malformed(spec.reason)
    addresses = tuple(_address(url, allowed) for url in _list(urls, MAX_URLS, least=least_sources))
    return ManifestFile(
        _text(name, _FILE_NAME), spec, addresses, _role(role), _pieces(digests, spec)
    )


def _role(entry: object) -> Role:
    if entry is None:
        return Role.MODEL
    if type(entry) is not str or entry not in set(Role):
        raise _Malformed
    return Role(entry)


def _pieces(entry: object, spec: ModelSpec) -> Pieces | None:
    if entry is None:
        return None
    size, digests = _fields(entry, "size", "sha256")
    pieces = parse_pieces(size, decode_base64(digests), total=spec.size)
    if pieces is None:
        raise _Malformed
    return pieces


def _address(url: object, allowed: tuple[str, ...]) -> SourceUrl:
    admitted = admit_source(url, allowed)
    if isinstance(admitted, Verdict):
        raise _Malformed(admitted.reason)
    return admitted


# --- the grammar ----------------------------------------------------------------------------


def _fields(value: object, *names: str, optional: tuple[str, ...] = ()) -> list[Any]:
    """Return the named fields in order; anything else in the object must begin with "x-"."""
    if value is MALFORMED or type(value) is not dict:
        raise _Malformed
    known = {*names, *optional}
    if any(name not in known and not name.startswith("x-") for name in value):
        raise _Malformed
    if any(name not in value for name in names):
        raise _Malformed
    return [value.get(name) for name in (*names, *optional)]


def _list(value: object, limit: int, *, least: int = 1) -> list[Any]:
    if type(value) is not list or not least <= len(value) <= limit:
        raise _Malformed
    return value


def _text(value: object, pattern: re.Pattern[str]) -> str:
    if type(value) is not str or pattern.fullmatch(value) is None:
        raise _Malformed
    return value


def _instant(value: object) -> float:
    text = _text(value, _INSTANT)
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise _Malformed from error
