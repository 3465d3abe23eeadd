"""The person's own manifest: the models that they recorded, signed with their own key (I-02).

It proves "these are the bytes that were recorded then", and nothing about who made them. It never
signs other bytes under an id that it has: such a model has to be removed first.

It is judged by the rule that judges a publisher's, with the same memory of what was seen before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.own_model import (
    ADDED,
    ASKED,
    ORIGIN,
    OwnModel,
    rfc3339,
    sources_of,
)
from companion_core.authority.signing_key import PersonalKeys, SigningKey
from companion_core.decisions.manifest import (
    MAX_SOURCES,
    SCHEMA,
    Manifest,
    check_payload,
    verify_manifest,
)
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.decisions.strict_json import decode_base64, parse_json
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, UsageError, error_for
from companion_core.system.folder_lock import lock_folder
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["OwnModels", "PersonalManifest", "claimed_ids"]

LIFETIME: Final = dt.timedelta(days=365)
_KIND: Final = ManifestKind.PERSONAL


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModels:
    """What the person has recorded.

    Attributes:
        manifest: verified; None when nothing is recorded.
        origins: where each model came from, by id.
        added: when each was recorded, by id; in UTC, as RFC 3339 writes it.
        asked: the source that was named for each, by id; "" if it is not known again.
    """

    manifest: Manifest | None
    origins: Mapping[str, str]
    added: Mapping[str, str]
    asked: Mapping[str, str]


_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_NOTHING: Final = OwnModels(manifest=None, origins=_NONE, added=_NONE, asked=_NONE)


class PersonalManifest:
    """The list of the person's own models. Blocking; it may be used by several processes.

    Args:
        path: of the file, in a folder of the person's own.
        keys: where the person's key is kept.
        memory: of earlier manifests, so that an older list is refused.
        clock: seconds of the wall clock.

    Raises:
        EnvironmentUnavailable: from the methods: `personal_key_missing`, a keychain's reason,
            `disk_unavailable`.
        Refused: from the methods: the file is not what the key signed, or it has expired.
    """

    def __init__(
        self,
        path: Path,
        *,
        keys: PersonalKeys,
        memory: ManifestMemory,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._keys = keys
        self._memory = memory
        self._clock = clock

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever recorded; told without a keychain."""
        return not self._path.exists()

    def claims(self, model_id: str) -> bool:
        """Tell whether the list names a model of that id; nothing is proved, no key asked for."""
        return model_id in claimed_ids(self._path)

    def read(self, *, expired: bool = False) -> OwnModels:
        """Return what is recorded, verified.

        Args:
            expired: also a list that has to be renewed before anything is served from it.
        """
        raw = self._read()
        if raw is None:
            return _NOTHING
        key = self._key(raw)
        return self._proved(raw, self._verify(raw, key, expired=expired))

    def preview(self, model: OwnModel) -> Manifest:
        """Return the list as it would be with `model`; nothing is written.

        A download may be staged from it, so that a model is recorded after its bytes arrived.

        Raises:
            UsageError: a manifest cannot hold it.
            Refused: `digest_mismatch`: the id is recorded with other bytes.
        """
        draft = self._with(model)
        return self._signed(draft, draft.key or SigningKey.generate())[1]

    def add(self, model: OwnModel) -> Manifest:
        """Record `model` and return the new list.

        Raises:
            UsageError: a manifest cannot hold it.
            Refused: `digest_mismatch`: the id is recorded with other bytes.
        """
        with self._alone():
            return self._write(self._with(model))

    def remove(self, model_id: str) -> None:
        """Take a model off the list.

        Raises:
            Refused: `model_not_in_manifest`.
        """
        with self._alone():
            draft = self._draft(expired=True)
            left = [known for known in draft.models if known["id"] != model_id]
            if len(left) == len(draft.models):
                raise Refused(Reason.MODEL_NOT_IN_MANIFEST)
            if left:
                self._write(dataclasses.replace(draft, models=left))
            else:
                self._path.unlink()  # a manifest lists one model at least

    def forget(self) -> None:
        """Drop the whole list; the way on for a person who has lost its key."""
        with self._alone():
            self._path.unlink(missing_ok=True)

    def renew(self) -> Manifest:
        """Sign the list for another year; the digests in it stay what they are.

        It is renewed also after it has expired: what it says of the bytes is as true as before.
        """
        with self._alone():
            draft = self._draft(expired=True)
            if not draft.models:
                raise Refused(Reason.MODEL_NOT_IN_MANIFEST)
            return self._write(draft)

    # --- the file -------------------------------------------------------------------------

    def _read(self) -> bytes | None:
        return read_private(self._path, _KIND.max_bytes)

    def _key(self, raw: bytes) -> SigningKey:
        key = self._keys.load(_signer(raw))
        if key is None:
            raise EnvironmentUnavailable(Reason.PERSONAL_KEY_MISSING)
        return key

    def _verify(self, raw: bytes, key: SigningKey, *, expired: bool = False) -> Manifest:
        keys = [key.public_text]
        now = self._memory.latest_time(self._clock())
        last_seen = self._memory.last_seen(keys)
        manifest = verify_manifest(raw, trusted_keys=keys, now=now, last_seen=last_seen, kind=_KIND)
        if isinstance(manifest, Verdict) and expired and manifest.reason is Reason.MANIFEST_EXPIRED:
            issued = _payload(raw)["issued"]
            moment = dt.datetime.fromisoformat(issued).timestamp()
            manifest = verify_manifest(
                raw, trusted_keys=keys, now=moment, last_seen=last_seen, kind=_KIND
            )
        if isinstance(manifest, Verdict):
            raise error_for(
                manifest.reason, f"your own list of models: {self._path}{_way_on(manifest)}"
            )
        return manifest

    @staticmethod
    def _proved(raw: bytes, manifest: Manifest) -> OwnModels:
        models = _payload(raw)["models"]  # what `manifest` was made of
        return OwnModels(
            manifest=manifest,
            origins={model["id"]: str(model.get(ORIGIN, "")) for model in models},
            added={model["id"]: str(model.get(ADDED, "")) for model in models},
            asked={model["id"]: str(model.get(ASKED, "")) for model in models},
        )

    # --- a change -------------------------------------------------------------------------

    def _draft(self, *, expired: bool = False) -> _Draft:
        raw = self._read()
        if raw is None:
            return _Draft(key=None, version=0, models=[])
        key = self._key(raw)
        self._verify(raw, key, expired=expired)
        payload = _payload(raw)
        return _Draft(
            key=key,
            version=payload["version"],
            models=payload["models"],
        )

    def _with(self, model: OwnModel) -> _Draft:
        draft = self._draft()
        entry = model.entry(dt.datetime.fromtimestamp(self._clock(), tz=dt.UTC))
        for known in draft.models:
            if known["id"] == model.id and _bytes_of(known) != _bytes_of(entry):
                raise Refused(
                    Reason.DIGEST_MISMATCH,
                    f"{model.id} is recorded with other bytes; to replace it: "
                    f"companion models remove {model.id}; to keep both: another --id",
                )
        others = [known for known in draft.models if known["id"] != model.id]
        return dataclasses.replace(draft, models=[*others, entry])

    def _signed(self, draft: _Draft, key: SigningKey) -> tuple[bytes, Manifest]:
        last_seen = self._memory.last_seen([key.public_text])
        before = max(draft.version, 0 if last_seen is None else last_seen.version)
        issued = dt.datetime.fromtimestamp(self._clock(), tz=dt.UTC).replace(microsecond=0)
        sources = sources_of(draft.models)
        if len(sources) > MAX_SOURCES:
            detail = (
                f"your list would have addresses of {len(sources)} places, {MAX_SOURCES} at most"
            )
            raise UsageError(Reason.USAGE, f"{detail}; companion models remove one of them")
        document = {
            "schema": SCHEMA,
            "version": before + 1,
            "issued": rfc3339(issued),
            "expires": rfc3339(issued + LIFETIME),
            "allowed_sources": sources,
            "models": draft.models,
        }
        payload = json.dumps(document).encode("ascii")
        if not check_payload(payload, _KIND).ok:
            raise UsageError(
                Reason.USAGE,
                "a manifest cannot hold this id, format, file name, size, licence or template",
            )
        raw = key.sign_envelope(payload, _KIND)
        return raw, self._verify(raw, key)

    def _write(self, draft: _Draft) -> Manifest:
        key = draft.key or self._keys.make()
        raw, manifest = self._signed(draft, key)
        # Remembered last: a crash between the two leaves a list that is newer than what is known.
        write_private(self._path, raw)
        self._memory.record(manifest, self._clock())
        return manifest

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the list meanwhile."""
        private_folder(self._path.parent)
        try:
            with lock_folder(self._path.parent, threading.Event()):
                yield
        except OSError as error:
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, f"{self._path}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What is to be signed; without a key nothing was signed before."""

    key: SigningKey | None
    version: int
    models: list[dict[str, Any]]


def _way_on(verdict: Verdict) -> str:
    if verdict.reason is Reason.MANIFEST_EXPIRED:
        return "; companion models verify proves the models again and renews it"
    return ""


def claimed_ids(path: Path) -> list[str]:
    """Return the ids that a list names; nothing is proved by that, and no key is asked for."""
    match parse_json(read_private(path, _KIND.max_bytes), limit=_KIND.max_bytes):
        case {"payload": str(encoded)}:
            match parse_json(decode_base64(encoded), limit=_KIND.max_bytes):
                case {"models": list(models)}:
                    return [each["id"] for each in models if _has_id(each)]
    return []


def _has_id(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is str


def _signer(raw: bytes) -> str | None:
    """Return the name of the key that a list says it was signed with; not proved."""
    match parse_json(raw, limit=_KIND.max_bytes):
        case {"signatures": [{"key_id": str(name)}]}:
            return name
    return None


def _payload(raw: bytes) -> dict[str, Any]:
    """Return the payload of a verified envelope."""
    envelope = parse_json(raw, limit=_KIND.max_bytes)
    payload: dict[str, Any] = parse_json(decode_base64(envelope["payload"]), limit=_KIND.max_bytes)
    return payload


def _bytes_of(entry: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return what an entry says of the bytes of a model."""
    return sorted((file["name"], file["size"], file["sha256"]) for file in entry["files"])
