"""Fetch the signed manifest; `manifest_memory.py` has it judged and remembers it (I-02)."""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.decisions.manifest import MAX_MANIFEST_BYTES, Manifest
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.egress.https_get import TransportFailed, open_get
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.system.deadline import call_with_deadline
from companion_core.system.state_files import open_ordinary

__all__ = ["ManifestMemory", "ManifestUnreachable", "fetch_manifest"]

IDLE_SECONDS: Final = 10.0
BODY_SECONDS: Final = 20.0
# Name look-up, connection, head and body together.
TOTAL_SECONDS: Final = 60.0
_OK: Final = 200
_SERVER_ERROR: Final = 500
_LATER: Final = frozenset({408, 425, 429})
_UNTRUSTED: Final = (
    "the certificate of the manifest's host is not trusted; "
    "network.extra_ca_file names a further authority"
)


class ManifestUnreachable(EnvironmentUnavailable):
    """Nobody answered for the manifest's address: no network, a broken host, a missing file."""


def fetch_manifest(
    url: str,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    trusted_keys: Sequence[str],
    memory: ManifestMemory,
    wall_now: float,
    cancelled: threading.Event | None = None,
    idle_seconds: float = IDLE_SECONDS,
    body_seconds: float = BODY_SECONDS,
) -> Manifest:
    """Return the current manifest, verified and remembered.

    Args:
        url: an https address, or `file:///` and an absolute path.
        egress: the doorway.
        context: from `build_tls_context`.
        trusted_keys: "ed25519:BASE64" each.
        memory: of earlier manifests; judges this one and records it.
        wall_now: seconds since the epoch.
        cancelled: ends the wait for the network; nothing is recorded then.
        idle_seconds: longest silence of the host between two reads.
        body_seconds: longest time from the end of the head to the end of the body.

    Raises:
        EnvironmentUnavailable: `manifest_unavailable` when it cannot be fetched or read;
            a `ManifestUnreachable` when that is because nobody answered.
        CompanionError: `interrupted`.
        Refused: with the reason of the rule that it breaks.
    """
    download = functools.partial(
        _download,
        egress=egress,
        context=context,
        idle_seconds=idle_seconds,
        body_seconds=body_seconds,
    )
    raw = _fetch(url, download, cancelled)
    return memory.judge(
        url,
        raw,
        trusted_keys=trusted_keys,
        wall_now=wall_now,
        cancelled=threading.Event() if cancelled is None else cancelled,
    )


def _fetch(
    url: str, download: Callable[[HttpsUrl], bytes], cancelled: threading.Event | None
) -> bytes:
    if url.startswith("file:///"):
        fetch = functools.partial(_read_file, url)  # the disk may hang
    else:
        parsed = parse_https_url(url)
        if isinstance(parsed, Verdict):
            raise error_for(parsed.reason)
        fetch = functools.partial(download, parsed)
    try:
        return call_with_deadline(fetch, seconds=TOTAL_SECONDS, cancelled=cancelled)
    except (TransportFailed, TimeoutError) as error:
        if isinstance(error, TransportFailed) and error.untrusted:
            raise EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE, _UNTRUSTED) from error
        raise ManifestUnreachable(Reason.MANIFEST_UNAVAILABLE) from error


def _read_file(url: str) -> bytes:
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
    try:
        with open_ordinary(path) as file:
            # One byte more than allowed is enough for the rule to refuse it as too long.
            return file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        detail = f"{path}: {error.strerror}"
        raise ManifestUnreachable(Reason.MANIFEST_UNAVAILABLE, detail) from error
    except ValueError as error:
        raise EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE) from error


def _download(
    url: HttpsUrl,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    idle_seconds: float,
    body_seconds: float,
) -> bytes:
    answer = open_get(
        url,
        egress=egress,
        context=context,
        idle_seconds=idle_seconds,
        body_seconds=body_seconds,
    )
    try:
        encoded = (answer.header("Content-Encoding") or "identity").strip().lower() != "identity"
        if answer.status != _OK or encoded:
            detail = f"the manifest's host answered {answer.status}"
            # A host that cannot answer now says nothing of its manifest; any other answer is one.
            failed = answer.status >= _SERVER_ERROR or answer.status in _LATER
            kind = ManifestUnreachable if failed else EnvironmentUnavailable
            raise kind(Reason.MANIFEST_UNAVAILABLE, detail)
        buffer = memoryview(bytearray(MAX_MANIFEST_BYTES + 1))
        received = 0
        while received < len(buffer) and (count := answer.readinto(buffer[received:])):
            received += count
        return bytes(buffer[:received])
    finally:
        answer.close()
