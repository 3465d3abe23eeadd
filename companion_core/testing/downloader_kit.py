"""Conformance of a downloader, against a model host that misbehaves as told."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.plugin_host import PLUGIN_REASONS, Role, snapshot_provider
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.rulebook import Rulebook, type_name

__all__ = ["DOWNLOADER_RULES", "check_downloader"]

DOWNLOADER_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "open is a method",
        2: "what open returns has readinto and close, and yields the bytes that were sent",
        3: "a redirect is raised as Redirect with its address, and never followed",
        4: "a status other than success is DownloadFailed with a reason that a plugin may give",
        5: "a request with an offset yields exactly the rest, or is ResumeRefused",
        6: "a range that the server ignores or shifts is refused",
        7: "a body that ends early is DownloadFailed or ends early too; no byte is added",
        8: "bytes under a content coding are DownloadFailed, never passed on",
        9: "a server without a trusted certificate is DownloadFailed, and gets no request",
        10: "close may be called twice, and before the end",
        11: "a request with a length yields those bytes first, or is ResumeRefused",
    }
)

_PATH: Final = "/model.bin"
_BODY: Final = bytes(range(256)) * 1024
_OFFSET: Final = 100_000
_LENGTH: Final = 50_000
_BOOK: Final = Rulebook("downloader", DOWNLOADER_RULES)


def check_downloader(make: Callable[[Path], Any]) -> None:
    """Check a downloader against `DOWNLOADER_RULES`.

    Args:
        make: returns the downloader; its argument is the path of a PEM file with the authority
            that vouches for this check's host.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected.
    """
    with tempfile.TemporaryDirectory() as known, tempfile.TemporaryDirectory() as unknown:
        authority = CertificateAuthority(Path(known))
        provider = make(authority.ca_file)
        snapshot = snapshot_provider(Role.DOWNLOAD, provider)
        _BOOK.expect(1, not isinstance(snapshot, str), seen=f"{snapshot}", expected="a Downloader")
        with ModelHost(authority.server_context("127.0.0.1"), {_PATH: _BODY}) as host:
            _check_answers(provider, host)
            _check_ranges(provider, host)
        stranger = CertificateAuthority(Path(unknown))
        with ModelHost(stranger.server_context("127.0.0.1"), {_PATH: _BODY}) as host:
            answer = _fetch(9, provider, host, Misbehaviour())
            failed = isinstance(answer, DownloadFailed) and not host.requests
            _BOOK.expect(9, failed, seen=_shown(answer), expected="DownloadFailed")


def _check_answers(provider: Any, host: ModelHost) -> None:
    answer = _fetch(2, provider, host, Misbehaviour())
    _BOOK.expect(2, answer == _BODY, seen=_shown(answer), expected="the body")

    target = host.url("/elsewhere.bin")
    asked = len(host.requests)
    answer = _fetch(3, provider, host, Misbehaviour(status=302, location=target))
    told = isinstance(answer, Redirect) and answer.url == target
    _BOOK.expect(3, told, seen=_shown(answer), expected="Redirect with the address")
    _BOOK.expect(3, len(host.requests) == asked + 1, seen="another request", expected="one")

    for status in (204, 206, 404, 500):
        answer = _fetch(4, provider, host, Misbehaviour(status=status))
        failed = isinstance(answer, DownloadFailed)
        _BOOK.expect(4, failed, seen=f"{_shown(answer)} for {status}", expected="DownloadFailed")

    for early in (Misbehaviour(close_after=70_000), Misbehaviour(chunked=True, close_after=9)):
        answer = _fetch(7, provider, host, early)
        shorter = isinstance(answer, DownloadFailed) or _BODY.startswith(answer)
        _BOOK.expect(7, shorter, seen=_shown(answer), expected="DownloadFailed")

    answer = _fetch(8, provider, host, Misbehaviour(content_encoding="gzip"))
    failed = isinstance(answer, DownloadFailed)
    _BOOK.expect(8, failed, seen=_shown(answer), expected="DownloadFailed")

    host.misbehave = Misbehaviour()
    body = _BOOK.ask(10, provider.open, DownloadRequest(url=host.url(_PATH)))
    for _ in range(2):
        _BOOK.ask(10, body.close)


def _check_ranges(provider: Any, host: ModelHost) -> None:
    host.misbehave = Misbehaviour()
    first = _BOOK.ask(2, provider.open, DownloadRequest(url=host.url(_PATH)))
    validator = getattr(first, "validator", None)
    _BOOK.ask(10, first.close)
    if validator is None:  # without one it cannot resume
        return
    answer = _fetch(5, provider, host, Misbehaviour(), validator)
    resumed = answer == _BODY[_OFFSET:] or isinstance(answer, ResumeRefused)
    _BOOK.expect(5, resumed, seen=_shown(answer), expected="the rest of the body")
    bounded = _fetch(11, provider, host, Misbehaviour(), validator, length=_LENGTH)
    told = isinstance(bounded, ResumeRefused) or (
        isinstance(bounded, bytes)
        and bounded in {_BODY[_OFFSET : _OFFSET + _LENGTH], _BODY[_OFFSET:]}
    )
    _BOOK.expect(11, told, seen=_shown(bounded), expected="these bytes, or all the rest")
    for ranges in ("ignore", "shift"):
        answer = _fetch(6, provider, host, Misbehaviour(ranges=ranges), validator)
        refused = isinstance(answer, (ResumeRefused, DownloadFailed))
        _BOOK.expect(6, refused, seen=f"{_shown(answer)} for {ranges}", expected="ResumeRefused")


def _fetch(
    rule: int,
    provider: Any,
    host: ModelHost,
    misbehave: Misbehaviour,
    validator: str | None = None,
    *,
    length: int | None = None,
) -> Any:
    """Return the bytes of one download, or the exception of the seam that ended it."""
    host.misbehave = misbehave
    offset = 0 if validator is None else _OFFSET
    request = DownloadRequest(
        url=host.url(_PATH), offset=offset, validator=validator, length=length
    )
    allowed = (Redirect, ResumeRefused, DownloadFailed)
    answer = _BOOK.ask(rule, _read_all, provider, request, may_raise=allowed)
    if isinstance(answer, DownloadFailed):
        fits = answer.reason in PLUGIN_REASONS[DownloadFailed] and type(answer.retryable) is bool
        _BOOK.expect(4, fits, seen=f"{answer.reason!r}", expected="a reason for DownloadFailed")
    return answer


def _read_all(provider: Any, request: DownloadRequest) -> bytes:
    body = provider.open(request)
    received, buffer = bytearray(), bytearray(64 * 1024)
    try:
        while count := body.readinto(memoryview(buffer)):
            received += buffer[:count]
            if len(received) > len(_BODY):
                break
    finally:
        with contextlib.suppress(Exception):
            body.close()
    return bytes(received)


def _shown(answer: object) -> str:
    return f"{len(answer)} bytes" if isinstance(answer, bytes) else type_name(answer)
