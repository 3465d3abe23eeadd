"""Remember which manifests were accepted and how late it was, for every instance of a person.

`decisions/manifest.py` judges a manifest and `decisions/manifest_history.py` says what is to be
remembered; this file keeps it in one owner-only folder, one writer at a time (I-02, I-18). The
bytes of an accepted manifest are stored beside it, so that a start needs no network until they
expire. They prove nothing by lying there: they are verified again whenever they are used.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from companion_core.config.paths import InstancePaths
from companion_core.decisions.manifest import (
    MAX_MANIFEST_BYTES,
    LastSeen,
    Manifest,
    check_manifest_origin,
    verify_manifest,
)
from companion_core.decisions.manifest_history import ManifestHistory, key_names, parse_history
from companion_core.decisions.strict_json import decode_base64, parse_json
from companion_core.decisions.verdict import Verdict
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    Reason,
    Refused,
    error_for,
)
from companion_core.system.folder_lock import lock_folder
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["ManifestMemory", "StoredManifest"]

# More than a person configures; the one that was fetched longest ago goes first.
MAX_STORED: Final = 16
# Longer files are damaged, which is said of them; nothing of ours is that long.
_MAX_FILE_BYTES: Final = 1024 * 1024
_NEVER: Final = threading.Event()


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """The bytes of a manifest that was accepted; they are to be verified again.

    Attributes:
        fetched_at: when its host sent it last, in seconds since the epoch.
    """

    raw: bytes
    fetched_at: float


class ManifestMemory:
    """The newest manifest seen of each key, and the latest wall time.

    A damaged file is refused, not replaced: a memory that starts anew would accept an old
    manifest again.

    Args:
        path: the memory's file, in a folder of its own.
        earlier: files of an earlier release, which kept one for each instance. They are taken
            in, then removed.
        remember: False only looks, and changes no file.
    """

    def __init__(self, path: Path, *, earlier: Sequence[Path] = (), remember: bool = True) -> None:
        self._path = path
        self._earlier = earlier
        self._remember = remember

    @classmethod
    def of(cls, paths: InstancePaths, *, remember: bool = True) -> Self:
        """Return the memory that all instances of a state folder share."""
        return cls(
            paths.manifest_memory, earlier=paths.earlier_manifest_memories(), remember=remember
        )

    def last_seen(self, trusted_keys: Sequence[str]) -> LastSeen | None:
        """Return the newest manifest that was accepted from any of these keys."""
        return self._read().newest(key_names(trusted_keys))

    def latest_time(self, wall_now: float) -> float:
        """Return `wall_now`, or the latest time seen before when the clock was set back."""
        return self._read().time(wall_now)

    def judge(
        self,
        url: str,
        raw: bytes,
        *,
        trusted_keys: Sequence[str],
        wall_now: float,
        cancelled: threading.Event = _NEVER,
        fetched: bool = True,
    ) -> Manifest:
        """Return the manifest that `raw` proves, and remember it and the time.

        The time is remembered of a refusal too: what has expired once stays expired.

        Args:
            url: where it comes from.
            raw: the envelope.
            trusted_keys: "ed25519:BASE64" each.
            wall_now: seconds since the epoch.
            cancelled: ends the wait for another instance that judges one.
            fetched: its host has sent it now; False for a stored one.

        Raises:
            Refused: with the reason of the rule that it breaks; `manifest_memory_damaged`,
                `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`; the manifest must then not be used.
            CompanionError: `interrupted`.
        """
        with self._alone(cancelled):
            history = self._read()
            judged = _judge(url, raw, trusted_keys, wall_now, history)
            history = history.with_time(wall_now)
            if isinstance(judged, CompanionError):
                with contextlib.suppress(EnvironmentUnavailable):  # the refusal is what matters
                    self._write(history)
                raise judged
            if fetched:
                self._store(url, raw, wall_now)
            self._write(history.with_manifest(judged))
        return judged

    def record(self, manifest: Manifest, wall_now: float) -> None:
        """Remember a manifest that was proved elsewhere, such as the person's own, and the time.

        Raises:
            CompanionError: as `judge`.
        """
        with self._alone(_NEVER):
            self._write(self._read().with_time(wall_now).with_manifest(manifest))

    def stored(self, url: str) -> StoredManifest | None:
        """Return what was accepted last from this address; None if that cannot be read."""
        try:
            return _parse_stored(read_private(self._stored_path(url), _MAX_FILE_BYTES))
        except (Refused, EnvironmentUnavailable):
            return None

    def confirm_clock(self, wall_now: float) -> None:
        """Forget that the clock was ahead: the person said that it is right now.

        Dates that a trusted key signed stay a floor. For `companion doctor --repair` alone.

        Raises:
            CompanionError: as `judge`.
        """
        with self._alone(_NEVER):
            self._write(self._read().with_clock_confirmed(wall_now))

    def damaged_files(self) -> list[Path]:
        """Return the files that cannot be understood.

        Raises:
            Refused: `state_path_unsafe`.
        """
        found = []
        for path in (self._path, *self._earlier):
            try:
                _read_history(path)
            except Refused as error:
                if error.reason is not Reason.MANIFEST_MEMORY_DAMAGED:
                    raise
                found.append(path)
        return found

    def make_anew(self, trusted_keys: Sequence[str], wall_now: float) -> int:
        """Set damaged files aside, and remember what the stored manifests still prove.

        The person has agreed: what else was known of earlier manifests is lost. For
        `companion doctor --repair` alone.

        Returns:
            How many manifests it remembers.

        Raises:
            CompanionError: as `judge`.
        """
        with self._alone(_NEVER):
            for path in self.damaged_files():
                try:
                    path.replace(path.with_name(f"{path.name}.damaged"))
                except OSError as error:
                    raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
            history, proved = self._read().with_time(wall_now), 0
            for path in self._all_stored():
                stored = _parse_stored(read_private(path, _MAX_FILE_BYTES))
                if stored is None:
                    continue
                manifest = verify_manifest(  # as of then: it may have expired since
                    stored.raw, trusted_keys=trusted_keys, now=stored.fetched_at, last_seen=None
                )
                if isinstance(manifest, Manifest):
                    history, proved = history.with_manifest(manifest), proved + 1
            self._write(history)
        return proved

    # --- the folder -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, cancelled: threading.Event) -> Iterator[None]:
        """Let no other instance read and write meanwhile."""
        if not self._remember:
            yield
            return
        private_folder(self._path.parent)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(self._path.parent, cancelled))
            except OSError as error:
                raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
            yield

    def _read(self) -> ManifestHistory:
        history = _read_history(self._path)
        for path in self._earlier:
            history = history.merged(_read_history(path))
        return history

    def _write(self, history: ManifestHistory) -> None:
        if not self._remember:
            return
        write_private(self._path, json.dumps(history.to_json()).encode("ascii"))
        for path in self._earlier:
            with contextlib.suppress(OSError):  # read again the next time, and nothing is lost
                path.unlink(missing_ok=True)

    def _store(self, url: str, raw: bytes, wall_now: float) -> None:
        if not self._remember:
            return
        document = {
            "fetched_at": int(wall_now),
            "envelope": base64.b64encode(raw).decode("ascii"),
        }
        path = self._stored_path(url)
        write_private(path, json.dumps(document).encode("ascii"))
        others = sorted(
            (other for other in self._all_stored() if other != path),
            key=lambda other: other.lstat().st_mtime,
        )
        for other in others[: max(0, len(others) + 1 - MAX_STORED)]:
            with contextlib.suppress(OSError):
                other.unlink(missing_ok=True)

    def _stored_path(self, url: str) -> Path:
        name = hashlib.sha256(os.fsencode(url)).hexdigest()
        return self._path.with_name(f"{name}.json")

    def _all_stored(self) -> list[Path]:
        digits = "[0-9a-f]" * 64
        return sorted(self._path.parent.glob(f"{digits}.json"))


def _judge(
    url: str, raw: bytes, trusted_keys: Sequence[str], wall_now: float, history: ManifestHistory
) -> Manifest | CompanionError:
    """Ask the rules; the answer of a refusal is the error, ready to be raised."""
    last_seen = history.newest(key_names(trusted_keys))
    now = history.time(wall_now)
    manifest = verify_manifest(raw, trusted_keys=trusted_keys, now=now, last_seen=last_seen)
    if isinstance(manifest, Verdict):
        by_the_clock = verify_manifest(
            raw, trusted_keys=trusted_keys, now=wall_now, last_seen=last_seen
        )
        held_back = manifest.reason is Reason.MANIFEST_EXPIRED and isinstance(
            by_the_clock, Manifest
        )
        return error_for(manifest.reason, _clock_was_ahead(now) if held_back else "")
    addresses = [each for model in manifest.models for file in model.files for each in file.urls]
    anchored = check_manifest_origin(url, addresses)
    return manifest if anchored.ok else error_for(anchored.reason)


def _clock_was_ahead(latest: float) -> str:
    moment = dt.datetime.fromtimestamp(latest, dt.UTC)
    return (
        f"by the clock of now it has not, but this machine's clock has already said "
        f"{moment:%Y-%m-%d %H:%M} UTC"
    )


def _read_history(path: Path) -> ManifestHistory:
    raw = read_private(path, _MAX_FILE_BYTES)
    if raw is None:
        return ManifestHistory()
    history = parse_history(raw)
    if history is None:
        raise error_for(Reason.MANIFEST_MEMORY_DAMAGED, str(path))
    return history


def _parse_stored(raw: bytes | None) -> StoredManifest | None:
    match parse_json(raw, limit=_MAX_FILE_BYTES):
        case {"fetched_at": int(fetched_at), "envelope": str(encoded)}:
            envelope = decode_base64(encoded)
            if envelope is not None and len(envelope) <= MAX_MANIFEST_BYTES:
                return StoredManifest(envelope, float(fetched_at))
    return None
