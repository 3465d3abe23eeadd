"""Rules: what was seen of manifests only grows; only a clock's own claim is ever taken back (I-02).

A date that a trusted key signed is a floor for the time, and stays. What this machine's clock
said counts too (I-18), until the person says that the clock was wrong. Imports no I/O and no
clock; never raises on bad input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from companion_core.decisions.manifest import LastSeen, Manifest
from companion_core.decisions.numbers import is_finite
from companion_core.decisions.signatures import key_id, parse_public_key
from companion_core.decisions.strict_json import parse_json

__all__ = ["MAX_HISTORY_BYTES", "ManifestHistory", "key_names", "parse_history"]

MAX_HISTORY_BYTES: Final = 64 * 1024
# The end of the last year that a date can have; a clock can be set to later.
_LAST_TIME: Final = 253_402_300_800


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestHistory:
    """What was seen of manifests.

    Attributes:
        latest_time: the latest that this machine's clock said, in seconds since the epoch.
        signed_time: the latest date of issue among the accepted manifests.
        seen: the newest accepted manifest of each key, by the name that `key_names` gives it.
    """

    latest_time: int = 0
    signed_time: int = 0
    seen: Mapping[str, LastSeen] = field(default_factory=dict)

    def time(self, now: float) -> float:
        """Return `now`, or what was seen if that is later."""
        return max(now, self.latest_time, self.signed_time)

    def newest(self, names: Iterable[str]) -> LastSeen | None:
        """Return the newest manifest that any of these keys signed."""
        found = [self.seen[name] for name in names if name in self.seen]
        return max(found, key=_age, default=None)

    def with_time(self, now: float) -> ManifestHistory:
        """Return it with what the clock says now."""
        if not is_finite(now):
            return self
        return dataclasses.replace(self, latest_time=max(self.latest_time, _whole(now)))

    def with_manifest(self, manifest: Manifest) -> ManifestHistory:
        """Return it with a manifest that was accepted."""
        one = LastSeen(manifest.version, manifest.payload_sha256)
        return self.merged(
            ManifestHistory(
                signed_time=math.floor(manifest.issued),
                seen=dict.fromkeys(manifest.signers, one),
            )
        )

    def merged(self, other: ManifestHistory) -> ManifestHistory:
        """Return what both have seen: of each the latest."""
        seen = dict(self.seen)
        for name, entry in other.seen.items():
            seen[name] = max(seen.get(name, entry), entry, key=_age)
        return ManifestHistory(
            latest_time=max(self.latest_time, other.latest_time),
            signed_time=max(self.signed_time, other.signed_time),
            seen=seen,
        )

    def with_clock_confirmed(self, now: float) -> ManifestHistory:
        """Return it after the person said that the clock is right; what was signed stays."""
        return dataclasses.replace(self, latest_time=_whole(now))

    def to_json(self) -> dict[str, Any]:
        """Return the document that `parse_history` reads."""
        return {
            "latest_time": self.latest_time,
            "signed_time": self.signed_time,
            "seen": {name: dataclasses.asdict(entry) for name, entry in self.seen.items()},
        }


def parse_history(raw: object) -> ManifestHistory | None:
    """Return what `to_json` wrote, also in an earlier release; None if it is damaged."""
    match parse_json(raw, limit=MAX_HISTORY_BYTES):
        case {"latest_time": int(latest), "seen": dict(entries), **rest}:
            signed = rest.get("signed_time", 0)
            seen = {name: _entry(entry) for name, entry in entries.items()}
            whole = {name: entry for name, entry in seen.items() if entry is not None}
            if type(signed) is int and len(whole) == len(seen):
                return ManifestHistory(latest_time=latest, signed_time=signed, seen=whole)
    return None


def key_names(trusted_keys: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which manifests of these keys are remembered.

    The last is that of an earlier release, which remembered one manifest for the whole set.
    """
    keys = [key for key in trusted_keys if type(key) is str] if _listed(trusted_keys) else []
    raw = [parse_public_key(key) for key in keys]
    together = hashlib.sha256("\n".join(sorted(set(keys))).encode(errors="replace")).hexdigest()
    return (*(key_id(key) for key in raw if key is not None), together)


def _listed(value: object) -> bool:
    return isinstance(value, list | tuple)


def _entry(entry: object) -> LastSeen | None:
    match entry:
        case {"version": int(version), "payload_sha256": str(digest)}:
            return LastSeen(version, digest)
    return None


def _whole(now: float) -> int:
    # Rounded up: the document holds no floats, and time only advances.
    return math.ceil(min(max(now, 0), _LAST_TIME))


def _age(entry: LastSeen) -> tuple[int, str]:
    return entry.version, entry.payload_sha256
