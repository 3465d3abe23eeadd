"""The core's own downloader, a plugin of the same hook as any other: `https`.

A dumb pump over verified TLS. It knows no digest and no size, follows no redirect, and
never decides whether bytes are right.
"""

from __future__ import annotations

import io
import re
import ssl
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.egress.https_get import IDLE_SECONDS, HttpsAnswer, TransportFailed, open_get
from companion_core.egress.interface import Egress
from companion_core.errors import Reason
from companion_core.hookspecs import hookimpl
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused

__all__ = ["HttpsDownloadPlugin", "HttpsDownloader"]

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OK: Final = 200
_PARTIAL: Final = 206
_RANGE_REFUSED: Final = frozenset({200, 412, 416})
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
# RFC 9110 section 8.8.3: only a strong validator says that two answers are the same bytes.
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,256}"')
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
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, error.retryable) from error

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
        if request.offset:
            if request.validator is None:
                raise ResumeRefused
            # RFC 9110 section 13.1.5: the range of these very bytes, or everything.
            headers = {"Range": f"bytes={request.offset}-", "If-Range": request.validator}
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
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, error.retryable) from error


def _judge(answer: HttpsAnswer, url: HttpsUrl, request: DownloadRequest) -> _Body:
    """Return the body of an answer that carries what was asked for."""
    status = answer.status
    if status in _REDIRECTS:
        location = answer.header("Location")
        if location is None:
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        raise Redirect(_absolute(url, location))
    if request.offset and (
        status in _RANGE_REFUSED or (status == _PARTIAL and not _resumes(answer, request.offset))
    ):
        raise ResumeRefused
    if status != (_PARTIAL if request.offset else _OK):
        transient = status >= _SERVER_ERROR or status == _TOO_MANY
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=transient)
    if (answer.header("Content-Encoding") or "identity").strip().lower() != "identity":
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
    etag = answer.header("ETag")
    strong = etag is not None and _STRONG_ETAG.fullmatch(etag) is not None
    return _Body(answer, etag if strong else None)


def _absolute(url: HttpsUrl, location: str) -> str:
    try:
        return urllib.parse.urljoin(url.text, location)
    except ValueError as error:
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False) from error


def _resumes(answer: HttpsAnswer, offset: int) -> bool:
    """Tell whether a 206 brings the bytes from `offset` to the end, and says so."""
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
    if match is None:
        return False
    first, last, total = (int(text) for text in match.groups())
    whole_rest = first == offset and last == total - 1
    return whole_rest and answer.length in {None, total - offset}


@dataclass(frozen=True, slots=True)
class HttpsDownloadPlugin:
    """What the core registers on its runtime plugin manager under the name `https`."""

    downloader: HttpsDownloader

    @hookimpl
    def companion_download(self) -> HttpsDownloader:
        """Return the provider."""
        return self.downloader
