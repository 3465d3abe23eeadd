"""Fetch the signed manifest; `manifest_memory.py` has it judged and remembers it (I-02).

A host that asks for a sign-in gets the person's access token: the host of the configured address
alone, after it asked. No redirect is followed, so the token goes nowhere else.
"""

from __future__ import annotations

import functools
import re
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.decisions.manifest import MAX_MANIFEST_BYTES, Manifest
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import TransportFailed
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.system.deadline import call_with_deadline
from companion_core.system.secret import Secret
from companion_core.system.state_files import open_ordinary
from companion_core.transfer_fault import (
    TransferFault,
    TransferProblem,
    explain_problem,
    fault_of_status,
)

__all__ = ["AccessTokens", "ManifestMemory", "ManifestUnreachable", "fetch_manifest"]

IDLE_SECONDS: Final = 10.0
HEAD_SECONDS: Final = 30.0
BODY_SECONDS: Final = 20.0
# Name look-up, connection, head and body together.
TOTAL_SECONDS: Final = 60.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_BEARER: Final = re.compile(r"(?:.*,)?[ \t]*bearer(?:[ \t,]|$)", re.IGNORECASE)
_SERVER_ERROR: Final = 500
# A host that cannot answer now says nothing of its manifest; any other answer is one.
_LATER: Final = frozenset({408, 425, 429})


class ManifestUnreachable(EnvironmentUnavailable):
    """Nobody answered for the manifest's address: no network, a broken host, a missing file.

    A host that asks for a sign-in which is not there has said nothing of its manifest either.
    """


class AccessTokens(Protocol):
    """Where a token comes from when the manifest's host asks for one."""

    def token(self, cancelled: threading.Event, *, rejected: Secret | None = None) -> Secret:
        """Return a token that may be used now; another one than `rejected`.

        Raises:
            CompanionError: there is none.
        """
        ...


class _AsksForToken(Exception):
    """The host answered 401 and names the scheme Bearer (RFC 6750 section 3)."""


def fetch_manifest(
    url: str,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    trusted_keys: Sequence[str],
    memory: ManifestMemory,
    wall_now: float,
    cancelled: threading.Event | None = None,
    tokens: AccessTokens | None = None,
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
        tokens: for a host that asks for a sign-in; None if no account is configured.
        idle_seconds: longest silence of the host between two reads.
        body_seconds: longest time from the end of the head to the end of the body.

    Raises:
        EnvironmentUnavailable: `manifest_unavailable` when it cannot be fetched or read;
            a `ManifestUnreachable` when that is because nobody answered, or, with the reason
            `sign_in_required` and the like, because there is no token for a host that asks.
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
    ended = threading.Event() if cancelled is None else cancelled
    raw = _fetch(url, download, ended, tokens)
    return memory.judge(url, raw, trusted_keys=trusted_keys, wall_now=wall_now, cancelled=ended)


def _fetch(
    url: str,
    download: Callable[[HttpsUrl, Secret | None], bytes],
    cancelled: threading.Event,
    tokens: AccessTokens | None,
) -> bytes:
    if url.startswith("file:///"):
        try:
            return _in_time(functools.partial(_read_file, url), cancelled)
        except TimeoutError as error:  # the disk hangs
            raise ManifestUnreachable(Reason.MANIFEST_UNAVAILABLE) from error
    parsed = parse_https_url(url)
    if isinstance(parsed, Verdict):
        raise error_for(parsed.reason)
    try:
        return _fetch_signed_in(parsed, download, cancelled, tokens)
    except TransportFailed as error:
        raise _unavailable(parsed, error.problem) from error
    except TimeoutError as error:
        raise _unavailable(parsed, TransferProblem(TransferFault.TIMED_OUT)) from error


def _fetch_signed_in(
    url: HttpsUrl,
    download: Callable[[HttpsUrl, Secret | None], bytes],
    cancelled: threading.Event,
    tokens: AccessTokens | None,
) -> bytes:
    """Ask without a token, then with the one that is there, then with a refreshed one."""
    token: Secret | None = None
    for _ in range(3):
        try:
            return _in_time(functools.partial(download, url, token), cancelled)
        except _AsksForToken:
            if tokens is None:
                break
        try:
            token = tokens.token(cancelled, rejected=token)
        except CompanionError as error:
            if error.reason is Reason.INTERRUPTED:
                raise
            told = f"the manifest: {url.host} asks for a sign-in"
            detail = "; ".join(part for part in (told, error.detail) if part)
            raise ManifestUnreachable(error.reason, detail) from error
    raise _unavailable(url, TransferProblem(TransferFault.UNAUTHORIZED, _UNAUTHORIZED))


def _in_time(fetch: Callable[[], bytes], cancelled: threading.Event) -> bytes:
    return call_with_deadline(fetch, seconds=TOTAL_SECONDS, cancelled=cancelled)


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
        detail = f"the manifest cannot be read: {path}"
        raise EnvironmentUnavailable(Reason.MANIFEST_UNAVAILABLE, detail) from error


def _download(
    url: HttpsUrl,
    token: Secret | None,
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
        answer = transport.get(url, bearer=token)
        try:
            challenges = answer.headers.get_list("WWW-Authenticate")
            if answer.status_code == _UNAUTHORIZED and any(map(_BEARER.match, challenges)):
                raise _AsksForToken
            if answer.status_code != _OK:
                fault = fault_of_status(answer.status_code)
                raise _unavailable(url, TransferProblem(fault, answer.status_code))
            if answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
                raise _unavailable(url, TransferProblem(TransferFault.BROKEN_ANSWER, _OK))
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
    answered = 0 < problem.status < _SERVER_ERROR and problem.status not in _LATER
    silent = not answered and problem.fault is not TransferFault.CERTIFICATE
    kind = ManifestUnreachable if silent else EnvironmentUnavailable
    return kind(Reason.MANIFEST_UNAVAILABLE, detail)
