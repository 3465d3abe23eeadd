"""Rules for this file: bytes of a request head in, a `RequestHead` or a refusal out; no I/O.

What RFC 9112 lets a recipient refuse is refused, and nothing ambiguous is repaired: bare CR
or LF, folding, other bytes than visible ASCII, absolute form, repeated fields, two lengths.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from companion_core.decisions.guard import presented_token
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.http.body import is_json

__all__ = [
    "MAX_FIELDS",
    "MAX_HEAD_BYTES",
    "UNKNOWN",
    "RequestHead",
    "field_name",
    "is_hopeless",
    "parse_head",
    "preferred_wait",
]

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 100
MAX_NAME_BYTES: Final = 128
MAX_LENGTH_DIGITS: Final = 15
MAX_WAIT_SECONDS: Final = 10**9

# RFC 9112 section 5: a field line holds visible ASCII, space and tab (obs-text is refused).
_FIELD_BYTES: Final = bytes([0x09, *range(0x20, 0x7F)])
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
# RFC 9112 section 3.2.1, origin-form only; the query is cut off and never read.
_TARGET = re.compile(r"(/[!$&'()*+,\-./0-9:;=@A-Z_a-z~%]*)(?:\?[!-\"$-~]*)?", re.ASCII)
_METHOD = re.compile(r"[A-Z]{1,32}", re.ASCII)

# The fields that the gateway reads; each may occur once. Others are checked and dropped.
_READ_FIELDS: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "origin",
        "transfer-encoding",
        "x-api-key",
    }
)

UNKNOWN: Final = -1
_CONTINUE: Final = "100-continue"  # RFC 9110 section 10.1.1: the only expectation there is
_MALFORMED = refuse(Reason.MALFORMED_REQUEST)
_TOO_LARGE = refuse(Reason.HEAD_TOO_LARGE)


class RequestHead:
    """A well-formed head; nothing changes it after it was made.

    Attributes:
        method: upper case, as sent.
        path: of the target, without its query, never decoded.
        headers: the fields that the gateway reads, under lower-case names.
        content_length: in bytes; None when the request states none.
        chunked: the body comes in chunks.
        body_bytes: how many follow the head; UNKNOWN for chunks, and for a GET with a body.
        keep_alive: the client does not ask to close.
        token: that it shows, or ""; see `presented_token`.
        expects: the client may send its body only after it has been asked for it.
        objection: why it is refused after the guard has passed it; None if it is not.
    """

    __slots__ = (
        "body_bytes",
        "chunked",
        "content_length",
        "expects",
        "headers",
        "keep_alive",
        "method",
        "objection",
        "path",
        "token",
    )

    def __init__(  # noqa: PLR0917 - it is made per request, where keywords cost time
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content_length: int | None,
        chunked: bool,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.content_length = content_length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.token = presented_token(headers.get("authorization"), headers.get("x-api-key"))
        self.expects = "expect" in headers
        self.body_bytes = (
            UNKNOWN if chunked or (content_length and method == "GET") else content_length or 0
        )
        self.objection = self._objection()

    def _objection(self) -> Reason | None:
        headers = self.headers
        if headers.get("expect", _CONTINUE).lower() != _CONTINUE:
            return Reason.EXPECTATION_FAILED
        if self.method == "GET":
            return Reason.MALFORMED_REQUEST if self.body_bytes else None
        if not is_json(headers.get("content-type")) or "content-encoding" in headers:
            return Reason.UNSUPPORTED_MEDIA_TYPE
        return Reason.LENGTH_REQUIRED if not self.chunked and self.content_length is None else None


@lru_cache(maxsize=512)
def field_name(name: str) -> str | Verdict:
    """Return the lower-case name if the gateway reads it, "" if not, or the refusal."""
    if len(name) > MAX_NAME_BYTES:
        return _TOO_LARGE
    if _TOKEN.fullmatch(name) is None:
        return _MALFORMED
    lower = name.lower()
    return lower if lower in _READ_FIELDS or lower.startswith("sec-fetch-") else ""


@lru_cache(maxsize=64)
def _request_line(line: str) -> tuple[str, str] | None:
    """Return method and path (RFC 9112 section 3: three words, single spaces)."""
    words = line.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1" or _METHOD.fullmatch(words[0]) is None:  # noqa: PLR2004 - a request line has three words
        return None
    target = _TARGET.fullmatch(words[1])
    return None if target is None else (words[0], target[1])


def is_hopeless(partial: bytes) -> bool:
    """Tell whether the beginning of a head can no longer become a well-formed one."""
    return _has_foreign_bytes(partial.removesuffix(b"\r"))


def _has_foreign_bytes(raw: bytes) -> bool:
    # Each CR LF pair is two bytes outside the allowed set. Anything more is a stray one.
    return len(raw.translate(None, _FIELD_BYTES)) != 2 * raw.count(b"\r\n")


def parse_head(raw: bytes) -> RequestHead | Verdict:
    """Parse a request head.

    Args:
        raw: from the first byte to before the empty line (CR LF CR LF not included).

    Returns:
        The head, or the refusal `malformed_request` or `head_too_large`.
    """
    if len(raw) > MAX_HEAD_BYTES:
        return _TOO_LARGE
    if _has_foreign_bytes(raw):
        return _MALFORMED
    lines = raw.decode("ascii").split("\r\n")
    if len(lines) > MAX_FIELDS + 1:
        return _TOO_LARGE
    request = _request_line(lines[0])
    if request is None:
        return _MALFORMED

    headers: dict[str, str] = {}
    del lines[0]
    for line in lines:
        name, colon, value = line.partition(":")
        key = field_name(name)
        if not colon or key in headers:
            return _MALFORMED
        if key:
            if isinstance(key, Verdict):
                return key
            headers[key] = value.strip(" \t")
    return _framed(*request, headers)


def preferred_wait(raw: bytes) -> int:
    """Return for how many seconds a client would rather wait (RFC 7240 section 4.3); 0 for none.

    Args:
        raw: a head that is well-formed.
    """
    for line in raw.split(b"\r\n")[1:]:
        name, _, preferences = line.partition(b":")
        for preference in preferences.split(b",") if name.lower() == b"prefer" else ():
            key, _, value = preference.partition(b";")[0].partition(b"=")
            seconds = value.strip(b' \t"')
            if key.strip(b" \t").lower() == b"wait" and seconds.isdigit():
                return int(seconds) if len(seconds) <= MAX_LENGTH_DIGITS else MAX_WAIT_SECONDS
    return 0


def _framed(method: str, path: str, headers: dict[str, str]) -> RequestHead | Verdict:
    """Decide how long the body is (RFC 9112 section 6), or that it cannot be known."""
    length: int | None = None
    chunked = False
    coding = headers.get("transfer-encoding")
    stated = headers.get("content-length")
    if coding is not None:
        if stated is not None or coding.lower() != "chunked":
            return _MALFORMED
        chunked = True
    elif stated is not None:
        if not (stated.isascii() and stated.isdigit()) or len(stated) > MAX_LENGTH_DIGITS:
            return _MALFORMED
        length = int(stated)
    connection = headers.get("connection")
    keep_alive = True
    if connection is not None and connection != "keep-alive":
        options = {option.strip(" \t").lower() for option in connection.split(",")}
        keep_alive = "close" not in options
    return RequestHead(method, path, headers, length, chunked, keep_alive)
