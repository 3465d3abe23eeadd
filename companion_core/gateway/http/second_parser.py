"""Rules for this file: a second opinion on heads that our own parser has accepted; no I/O.

llhttp, the parser of Node.js, reads them through `httptools` where that is installed. It can
only refuse more: a head that the two read as different requests is malformed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.http.head import RequestHead, field_name, parse_head

__all__ = ["head_parser"]

# The guard refuses all others, and llhttp does not know every method.
_METHODS: Final = frozenset({"GET", "POST"})
_MALFORMED = refuse(Reason.MALFORMED_REQUEST)


class _Reading:
    """What llhttp calls back with; of the fields, those that the gateway reads."""

    __slots__ = ("complete", "fields", "repeated", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: dict[str, str] = {}
        self.repeated = False
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        key = field_name(name.decode("ascii"))
        if isinstance(key, str) and key:
            self.repeated = self.repeated or key in self.fields
            self.fields[key] = value.decode("ascii").strip(" \t")

    def on_headers_complete(self) -> None:
        self.complete = True


def _llhttp() -> ModuleType | None:
    try:
        import httptools  # noqa: PLC0415 - it is optional
    except ImportError:
        return None
    return httptools


def head_parser(*, second: bool) -> Callable[[bytes], RequestHead | Verdict]:
    """Return `parse_head`, with the second opinion where it is wanted and installed."""
    llhttp = _llhttp() if second else None
    if llhttp is None:
        return parse_head

    def parse_twice(raw: bytes) -> RequestHead | Verdict:
        head = parse_head(raw)
        if isinstance(head, Verdict) or head.method not in _METHODS:
            return head
        return head if _reads_alike(llhttp, raw, head) else _MALFORMED

    return parse_twice


def _reads_alike(llhttp: ModuleType, raw: bytes, head: RequestHead) -> bool:
    reading = _Reading()
    parser = llhttp.HttpRequestParser(reading)
    try:
        parser.feed_data(raw + b"\r\n\r\n")
    except llhttp.HttpParserUpgrade:
        pass  # llhttp stops at Upgrade; the gateway ignores Upgrade
    except llhttp.HttpParserError:
        return False
    return bool(
        reading.complete
        and not reading.repeated
        and reading.fields == head.headers
        and reading.target.partition(b"?")[0] == head.path.encode("ascii")
        and parser.get_method() == head.method.encode("ascii")
        and parser.get_http_version() == "1.1"
    )
