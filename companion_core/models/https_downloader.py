"""The core's own downloader, a plugin of the same hook as any other: `https`.

A dumb pump over verified TLS. It knows no digest and no size, follows no redirect, and
never decides whether bytes are right.
"""

from __future__ import annotations

import email.utils
import io
import math
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from companion_core.decisions.redirect import read_location, resolve_redirect
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.egress.https_get import IDLE_SECONDS, HttpsAnswer, TransportFailed, open_get
from companion_core.egress.interface import Egress
from companion_core.errors import Reason
from companion_core.hookspecs import hookimpl
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.transfer_fault import TransferFault, TransferProblem, fault_of_status

__all__ = ["HttpsDownloadPlugin", "HttpsDownloader"]

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OK: Final = 200
_PARTIAL: Final = 206
_RANGE_REFUSED: Final = frozenset({200, 412, 416})
# What another try may change (RFC 9110 section 15, RFC 6585 section 4).
_TRANSIENT: Final = frozenset({TransferFault.SERVER_ERROR, TransferFault.TOO_MANY_REQUESTS})
# RFC 9110 section 8.8.3: only a strong validator says that two answers are the same bytes.
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,256}"')
_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})", re.ASCII)


class _Body(io.RawIOBase):
    """The bytes of one answer.

    Attributes:
        length: how many the server announced, None when it did not.
        validator: what a later request may resume with, None when it may not.
    """

    def __init__(self, answer: HttpsAnswer, validator: str | None) -> None:
        self._answer = answer
        self.length = answer.length
        self.validator = validator

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._answer.readinto(buffer)
        except TransportFailed as error:
            raise _failed(error) from error

    def close(self) -> None:
        self._answer.close()
        super().close()


@dataclass(frozen=True, slots=True)
class HttpsDownloader:
    """Pumps bytes from `https` addresses (SEAMS.md, `Downloader`).

    Attributes:
        egress: the doorway.
        context_factory: gives the TLS context; called at each `open`.
        idle_seconds: longest silence of a server.
    """

    egress: Egress
    context_factory: Callable[[], ssl.SSLContext]
    idle_seconds: float = IDLE_SECONDS

    def open(self, request: DownloadRequest) -> BinaryIO:
        """See `Downloader.open`."""
        url = parse_https_url(request.url)
        if isinstance(url, Verdict):
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        headers = {}
        if _is_range(request):
            if request.validator is None and request.length is None:
                raise ResumeRefused
            last = "" if request.length is None else request.offset + request.length - 1
            headers["Range"] = f"bytes={request.offset}-{last}"
            if request.validator is not None:
                # RFC 9110 section 13.1.5: the range of these very bytes, or everything.
                headers["If-Range"] = request.validator
        try:
            answer = open_get(
                url,
                egress=self.egress,
                context=self.context_factory(),
                headers=headers,
                idle_seconds=self.idle_seconds,
            )
            try:
                return cast("BinaryIO", _judge(answer, url, request))
            except BaseException:
                answer.close()
                raise
        except TransportFailed as error:
            raise _failed(error) from error


def _failed(error: TransportFailed) -> DownloadFailed:
    return DownloadFailed(Reason.DOWNLOAD_FAILED, error.retryable, error.problem)


def _refused(fault: TransferFault, answer: HttpsAnswer) -> DownloadFailed:
    problem = TransferProblem(fault, answer.status, _seconds_to_wait(answer))
    return DownloadFailed(Reason.DOWNLOAD_FAILED, fault in _TRANSIENT, problem)


def _seconds_to_wait(answer: HttpsAnswer) -> int | None:
    """Return what Retry-After asks for (RFC 9110 section 10.2.3); None if it asks for nothing.

    A date is compared with the answer's own: the clocks of two machines may differ.
    """
    text = (answer.header("Retry-After") or "").strip()
    if _SECONDS.fullmatch(text):
        return int(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
        since = email.utils.parsedate_to_datetime(answer.header("Date") or "")
        return max(0, math.ceil((until - since).total_seconds()))
    except (TypeError, ValueError):
        return None


def _judge(answer: HttpsAnswer, url: HttpsUrl, request: DownloadRequest) -> _Body:
    """Return the body of an answer that carries what was asked for."""
    status = answer.status
    if status in _REDIRECTS:
        location = answer.header("Location")
        # http.client reads a header's bytes as Latin-1.
        text = None if location is None else read_location(location.encode("latin-1"))
        address = None if text is None else resolve_redirect(url.text, text)
        if address is None:
            raise _refused(TransferFault.UNREADABLE_REDIRECT, answer)
        raise Redirect(address)
    ranged = _is_range(request)
    if ranged and (
        status in _RANGE_REFUSED or (status == _PARTIAL and not _resumes(answer, request))
    ):
        raise ResumeRefused
    if status != (_PARTIAL if ranged else _OK):
        raise _refused(fault_of_status(status), answer)
    if (answer.header("Content-Encoding") or "identity").strip().lower() != "identity":
        raise _refused(TransferFault.BROKEN_ANSWER, answer)
    etag = answer.header("ETag")
    strong = etag is not None and _STRONG_ETAG.fullmatch(etag) is not None
    return _Body(answer, etag if strong else None)


def _is_range(request: DownloadRequest) -> bool:
    return request.offset > 0 or request.length is not None


def _resumes(answer: HttpsAnswer, request: DownloadRequest) -> bool:
    """Tell whether a 206 brings the bytes that were asked for, and says so."""
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
    if match is None:
        return False
    first, last, total = (int(text) for text in match.groups())
    end = total if request.length is None else min(request.offset + request.length, total)
    as_asked = first == request.offset and last == end - 1
    return as_asked and answer.length in {None, end - first}


@dataclass(frozen=True, slots=True)
class HttpsDownloadPlugin:
    """What the core registers on its runtime plugin manager under the name `https`."""

    downloader: HttpsDownloader

    @hookimpl
    def companion_download(self) -> HttpsDownloader:
        """Return the provider."""
        return self.downloader
