"""The kit fails a downloader that does not conform: one broken downloader for each rule."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect
from companion_core.testing import check_downloader
from companion_core.testing.downloader_kit import DOWNLOADER_RULES

pytestmark = pytest.mark.integration


def real(ca_file: Path | None) -> HttpsDownloader:
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    return HttpsDownloader(LiveEgress(), lambda: context)


class Wrapped:
    """The real downloader with one fault; `fault` sees the request and the answer."""

    def __init__(self, ca_file: Path, **faults: Any) -> None:
        self.inner, self.faults = real(ca_file), faults

    def open(self, request: DownloadRequest) -> Any:
        if "request" in self.faults:
            request = self.faults["request"](request)
        try:
            body = self.inner.open(request)
        except Exception as error:
            if "error" not in self.faults:
                raise
            return self.faults["error"](self.inner, request, error)
        return self.faults["body"](body) if "body" in self.faults else body


class Body:
    def __init__(self, inner: Any, *, flip: bool = False, once: bool = False) -> None:
        self.inner, self.flip, self.once, self.closed = inner, flip, once, False
        self.validator = inner.validator

    def readinto(self, buffer: Any) -> int:
        count = self.inner.readinto(buffer)
        if self.flip and count:
            buffer[0] ^= 1
        return count

    def close(self) -> None:
        if self.once and self.closed:
            raise ValueError("closed twice")
        self.closed = True
        self.inner.close()


def follow(inner: Any, request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, Redirect):
        return inner.open(DownloadRequest(url=error.url))
    raise error


def leak(_inner: Any, _request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, DownloadFailed):
        raise OSError("raw") from error
    raise error


def odd_reason(_inner: Any, _request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, DownloadFailed):
        raise DownloadFailed(Reason.OK, retryable=False) from error
    raise error


def trusting(_ca_file: Path) -> HttpsDownloader:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HttpsDownloader(LiveEgress(), lambda: context)


class Decoding(Wrapped):
    """Passes encoded bytes on."""

    def open(self, request: DownloadRequest) -> Any:
        from companion_core.models import https_downloader as module  # noqa: PLC0415 - patched

        judge = module._judge

        def lenient(answer: Any, url: Any, asked: DownloadRequest) -> Any:
            header = answer.header
            proxy = SimpleNamespace(
                status=answer.status,
                length=answer.length,
                close=answer.close,
                readinto=answer.readinto,
                header=lambda name: None if name == "Content-Encoding" else header(name),
            )
            return judge(proxy, url, asked)

        module._judge = lenient
        try:
            return self.inner.open(request)
        finally:
            module._judge = judge


class Padding(Body):
    """Invents the bytes that are missing at the end."""

    padded = False

    def readinto(self, buffer: Any) -> int:
        try:
            count = super().readinto(buffer)
        except DownloadFailed:
            count = 0
        if count == 0 and not self.padded:
            self.padded = True
            buffer[:4] = b"junk"
            return 4
        return count


class PaddingShort(Padding):
    """Invents bytes only where the server broke off, not after a whole body."""

    def readinto(self, buffer: Any) -> int:
        try:
            return Body.readinto(self, buffer)
        except DownloadFailed:
            if self.padded:
                return 0
            self.padded = True
            buffer[:4] = b"junk"
            return 4


def begins_later_if_bounded(asked: DownloadRequest) -> DownloadRequest:
    return asked if asked.length is None else replace(asked, offset=asked.offset + 1)


DOWNLOADERS = [
    (1, lambda _ca: object()),
    (2, lambda ca: Wrapped(ca, body=lambda body: Body(body, flip=True))),
    (3, lambda ca: Wrapped(ca, error=follow)),
    (4, lambda ca: Wrapped(ca, error=leak)),
    (4, lambda ca: Wrapped(ca, error=odd_reason)),
    (5, lambda ca: Wrapped(ca, request=lambda asked: replace(asked, offset=0, validator=None))),
    (7, lambda ca: Wrapped(ca, body=PaddingShort)),
    (8, Decoding),
    (9, trusting),
    (10, lambda ca: Wrapped(ca, body=lambda body: Body(body, once=True))),
    (11, lambda ca: Wrapped(ca, request=begins_later_if_bounded)),
]


@pytest.mark.parametrize(("rule", "make"), DOWNLOADERS)
def test_a_downloader_that_breaks_a_rule_is_named(rule: int, make: Any):
    assert_breaks(rule, DOWNLOADER_RULES, "downloader", lambda: check_downloader(make))


def test_a_downloader_that_takes_any_range_is_named(monkeypatch: pytest.MonkeyPatch):
    from companion_core.models import https_downloader as module  # noqa: PLC0415 - patched

    # A fault planted in the real downloader, which has no switch for it.
    monkeypatch.setattr(module, "_resumes", lambda answer, offset: True)
    assert_breaks(6, DOWNLOADER_RULES, "downloader", lambda: check_downloader(real))


def test_the_cores_downloader_conforms():
    check_downloader(real)
    assert {rule for rule, _ in DOWNLOADERS} | {6} == set(DOWNLOADER_RULES)
