"""Fetch the signed manifest, and remember what was seen so that nothing older is accepted.

`decisions/manifest.py` judges; this file brings the bytes, the time and the memory of earlier
manifests (I-02, I-18).
"""

from __future__ import annotations

import functools
import hashlib
import json
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from companion_core.decisions.manifest import (
    MAX_MANIFEST_BYTES,
    LastSeen,
    Manifest,
    check_manifest_origin,
    verify_manifest,
)
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.strict_json import parse_json
from companion_core.decisions.verdict import Verdict
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import TransportFailed
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, error_for
from companion_core.system.deadline import call_with_deadline
from companion_core.system.state_files import (
    open_ordinary,
    private_folder,
    read_private,
    write_private,
)
from companion_core.transfer_fault import (
    TransferFault,
    TransferProblem,
    explain_problem,
    fault_of_status,
)

__all__ = ["ManifestMemory", "fetch_manifest"]

IDLE_SECONDS: Final = 10.0
HEAD_SECONDS: Final = 30.0
BODY_SECONDS: Final = 20.0
# Name look-up, connection, head and body together.
TOTAL_SECONDS: Final = 60.0
MAX_MEMORY_BYTES: Final = 64 * 1024
_OK: Final = 200


class ManifestMemory:
    """The newest manifest seen for each set of trusted keys, and the latest wall time.

    One owner-only file holds them. A damaged file is refused, not replaced: a memory that starts
    anew would accept an old manifest again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def last_seen(self, trusted_keys: Sequence[str]) -> LastSeen | None:
        """Return the newest manifest that was accepted under these keys."""
        entry = self._read()[1].get(_key_set(trusted_keys))
        return None if entry is None else LastSeen(entry[0], entry[1])

    def latest_time(self, wall_now: float) -> float:
        """Return `wall_now`, or the latest time seen before when the clock was set back."""
        return max(wall_now, self._read()[0])

    def record(self, trusted_keys: Sequence[str], manifest: Manifest, wall_now: float) -> None:
        """Remember an accepted manifest and the time.

        Raises:
            EnvironmentUnavailable: `disk_unavailable`; the manifest must then not be used.
        """
        latest, seen = self._read()
        seen[_key_set(trusted_keys)] = (manifest.version, manifest.payload_sha256)
        document = {
            # Whole seconds, rounded up: the document holds no floats and time only advances.
            "latest_time": int(max(latest, wall_now)) + 1,
            "seen": {
                keys: {"version": version, "payload_sha256": digest}
                for keys, (version, digest) in seen.items()
            },
        }
        private_folder(self._path.parent)
        write_private(self._path, json.dumps(document).encode("ascii"))

    def _read(self) -> tuple[float, dict[str, tuple[int, str]]]:
        raw = read_private(self._path, MAX_MEMORY_BYTES)
        if raw is None:
            return 0.0, {}
        match parse_json(raw, limit=MAX_MEMORY_BYTES):
            case {"latest_time": int(latest), "seen": dict(seen)}:
                return float(latest), {str(keys): _entry(entry) for keys, entry in seen.items()}
        raise Refused(Reason.STATE_PATH_UNSAFE, f"damaged: {self._path}")


def _entry(entry: object) -> tuple[int, str]:
    match entry:
        case {"version": int(version), "payload_sha256": str(digest)}:
            return version, digest
    raise Refused(Reason.STATE_PATH_UNSAFE)


def _key_set(trusted_keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(set(trusted_keys))).encode("utf-8")).hexdigest()


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
        memory: of earlier manifests; an accepted one is recorded.
        wall_now: seconds since the epoch.
        cancelled: ends the wait for the network; nothing is recorded then.
        idle_seconds: longest silence of the host between two reads.
        body_seconds: longest time from the end of the head to the end of the body.

    Raises:
        EnvironmentUnavailable: `manifest_unavailable` when it cannot be fetched or read.
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
    now = memory.latest_time(wall_now)
    last_seen = memory.last_seen(trusted_keys)
    manifest = verify_manifest(raw, trusted_keys=trusted_keys, now=now, last_seen=last_seen)
    if isinstance(manifest, Verdict):
        raise error_for(manifest.reason)
    addresses = [each for model in manifest.models for file in model.files for each in file.urls]
    anchored = check_manifest_origin(url, addresses)
    if not anchored.ok:
        raise error_for(anchored.reason)
    memory.record(trusted_keys, manifest, wall_now)
    return manifest


def _fetch(
    url: str, download: Callable[[HttpsUrl], bytes], cancelled: threading.Event | None
) -> bytes:
    if url.startswith("file:///"):
        try:
            return _in_time(functools.partial(_read_file, url), cancelled)
        except TimeoutError as error:  # the disk hangs
            raise EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE) from error
    parsed = parse_https_url(url)
    if isinstance(parsed, Verdict):
        raise error_for(parsed.reason)
    try:
        return _in_time(functools.partial(download, parsed), cancelled)
    except TransportFailed as error:
        raise _unavailable(parsed, error.problem) from error
    except TimeoutError as error:
        raise _unavailable(parsed, TransferProblem(TransferFault.TIMED_OUT)) from error


def _in_time(fetch: Callable[[], bytes], cancelled: threading.Event | None) -> bytes:
    return call_with_deadline(fetch, seconds=TOTAL_SECONDS, cancelled=cancelled)


def _read_file(url: str) -> bytes:
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
    try:
        with open_ordinary(path) as file:
            # One byte more than allowed is enough for the rule to refuse it as too long.
            return file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:
        detail = f"the manifest cannot be read: {path}"
        raise EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE, detail) from error


def _download(
    url: HttpsUrl,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    idle_seconds: float,
    body_seconds: float,
) -> bytes:
    # httpx2 takes a while to load, which a manifest in a file does not have to wait for.
    from companion_core.egress.http_transport import DoorwayTransport  # noqa: PLC0415 - see above

    total = HEAD_SECONDS + body_seconds
    with DoorwayTransport(egress, context, seconds=idle_seconds, total_seconds=total) as transport:
        answer = transport.get(url)
        try:
            if answer.status_code != _OK:
                fault = fault_of_status(answer.status_code)
                raise _unavailable(url, TransferProblem(fault, answer.status_code))
            if answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
                raise _unavailable(url, TransferProblem(TransferFault.BROKEN_ANSWER))
            body, deadline = bytearray(), time.monotonic() + body_seconds
            for piece in answer.iter_raw():
                body += piece
                if len(body) > MAX_MANIFEST_BYTES:
                    break  # enough for the rule to refuse it as too long
                if time.monotonic() > deadline:
                    raise _unavailable(url, TransferProblem(TransferFault.TIMED_OUT))
            return bytes(body[: MAX_MANIFEST_BYTES + 1])
        finally:
            answer.close()


def _unavailable(url: HttpsUrl, problem: TransferProblem) -> EnvironmentUnavailable:
    detail = f"the manifest: {explain_problem(problem, url.host)}"
    return EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE, detail)
