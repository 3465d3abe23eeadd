"""The manifest that a start uses: what its host says now, else what it said last (I-02).

Only silence leads to the stored one: no network, a host that is down, a file that is not there, and
a host that asks for a sign-in which has ended. An answer that is refused is refused, and so is a
host whose certificate is not trusted.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from companion_core.authority.manifest_fetch import (
    AccessTokens,
    ManifestUnreachable,
    fetch_manifest,
)
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.decisions.manifest import Manifest
from companion_core.egress.interface import Egress
from companion_core.errors import Reason, Refused

__all__ = ["CurrentManifest", "current_manifest"]

# A stored one that is damaged, or that the configured keys did not sign, is as good as none.
_NONE_STORED: Final = frozenset({Reason.MANIFEST_MALFORMED, Reason.MANIFEST_SIGNATURE_INVALID})


@dataclass(frozen=True, slots=True)
class CurrentManifest:
    """A manifest that was verified now.

    Attributes:
        fetched_at: when its host sent it, in seconds since the epoch.
        is_stored: its host did not answer now.
        unreachable: why not, for a person; "" if nothing more is known.
    """

    manifest: Manifest
    fetched_at: float
    is_stored: bool = False
    unreachable: str = ""


def current_manifest(
    url: str,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    trusted_keys: Sequence[str],
    memory: ManifestMemory,
    wall_now: float,
    cancelled: threading.Event,
    tokens: AccessTokens | None = None,
) -> CurrentManifest:
    """Return the manifest of this address; the arguments and errors are `fetch_manifest`'s.

    The stored one passes every rule again: signature, expiry, and that none newer was seen.
    """
    try:
        manifest = fetch_manifest(
            url,
            egress=egress,
            context=context,
            trusted_keys=trusted_keys,
            memory=memory,
            wall_now=wall_now,
            cancelled=cancelled,
            tokens=tokens,
        )
    except ManifestUnreachable as error:
        stored = memory.stored(url)
        if stored is None:
            raise
        try:
            manifest = memory.judge(
                url,
                stored.raw,
                trusted_keys=trusted_keys,
                wall_now=wall_now,
                cancelled=cancelled,
                fetched=False,
            )
        except Refused as refusal:
            if refusal.reason in _NONE_STORED:
                raise error from refusal
            told = "its host did not answer, and the stored one is refused"
            refusal.detail = ": ".join(part for part in (told, refusal.detail) if part)
            raise
        return CurrentManifest(manifest, stored.fetched_at, is_stored=True, unreachable=_why(error))
    return CurrentManifest(manifest, wall_now)


def _why(error: ManifestUnreachable) -> str:
    """Say why the host was of no use, and what to do where its own words do not."""
    if error.reason is Reason.MANIFEST_UNAVAILABLE:
        return error.detail
    return f"{error.detail}; {error.reason.value}: {error.advice}"
