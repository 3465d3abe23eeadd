"""Rules for this file: a second opinion on heads that our own parser has accepted; no I/O.

llhttp, the parser of Node.js, reads them through `httptools` where that is installed. It can
only refuse more: what the two do not read as the same request is nobody's request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.head import RequestHead, parse_head

__all__ = ["head_parser", "second_parser_installed"]

# Others are refused by the guard, and llhttp does not know every method that has a name.
_METHODS: Final = frozenset({"GET", "POST"})
_MALFORMED = refuse(Reason.MALFORMED_REQUEST)


class _Reading:
    """What llhttp calls back with."""

    __slots__ = ("complete", "fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def second_parser_installed() -> bool:
    """Tell whether `companion-core[second-parser]` is there."""
    try:
        import httptools  # noqa: F401, PLC0415 - optional
    except ImportError:
        return False
    return True


def head_parser(*, second: bool) -> Callable[[bytes], RequestHead | Verdict]:
    """Return `parse_head`, with the second opinion where it is wanted and installed."""
    if not (second and second_parser_installed()):
        return parse_head

    def parse_twice(raw: bytes) -> RequestHead | Verdict:
        head = parse_head(raw)
        if isinstance(head, Verdict) or head.method not in _METHODS or _reads_alike(raw, head):
            return head
        return _MALFORMED

    return parse_twice


def _reads_alike(raw: bytes, head: RequestHead) -> bool:
    import httptools  # noqa: PLC0415 - optional

    reading = _Reading()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(raw + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        pass  # it stops behind such a head, which the gateway serves as if it asked for nothing
    except httptools.HttpParserError:
        return False
    read = {}
    for name, value in reading.fields:
        key = name.decode("ascii").lower()
        if key in read and key in head.headers:
            return False
        read[key] = value.decode("ascii").strip(" \t")
    return (
        reading.complete
        and parser.get_method().decode("ascii") == head.method
        and parser.get_http_version() == "1.1"
        and reading.target.decode("ascii").partition("?")[0] == head.path
        and head.headers.items() <= read.items()
    )
