"""Rules for this file: bytes of a backend's answer head in, a `ResponseHead` or None out; no I/O.

The backend is believed in nothing but status, media type and where its answer ends; what is
ambiguous about the end is refused (RFC 9112 section 6).
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Final

__all__ = ["BODILESS", "ResponseHead", "answer_kind", "parse_response_head"]

BODILESS: Final = frozenset({204, 304})

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)
_KEEP_ALIVE = re.compile(r"\b(timeout|max)=([0-9]{1,9})(?![0-9])", re.ASCII)
_MAX_LENGTH_DIGITS: Final = 15
_SINGLE: Final = frozenset(
    {"content-length", "transfer-encoding", "content-type", "content-encoding"}
)


class ResponseHead:
    """What is kept of a backend's answer; nothing changes it after it was made.

    Attributes:
        status: of the answer.
        content_type: as sent; None when the answer states none.
        content_length: in bytes; None when the answer ends otherwise.
        chunked: it ends with its last chunk.
        reusable: the backend keeps the connection open.
        keep_alive_seconds: for how long it says that it does so.
        until_close: it ends with the connection.
        kind: a number that stands for status and framing. What a backend does after one
            answer it is expected to do after every other one of the same kind.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "content_type",
        "keep_alive_seconds",
        "kind",
        "reusable",
        "status",
        "until_close",
    )

    def __init__(
        self,
        status: int,
        content_type: str | None,
        content_length: int | None,
        *,
        chunked: bool,
        reusable: bool,
        keep_alive_seconds: float = math.inf,
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.content_length = content_length
        self.chunked = chunked
        self.reusable = reusable
        self.keep_alive_seconds = keep_alive_seconds
        self.until_close = content_length is None and not chunked
        self.kind = answer_kind(status, chunked=chunked)


def answer_kind(status: int, *, chunked: bool) -> int:
    """Return the `kind` of an answer."""
    return 2 * status + chunked


@lru_cache(maxsize=16)  # a backend repeats its heads
def parse_response_head(raw: bytes) -> ResponseHead | None:
    """Parse the head of a backend's answer; None when it is malformed (RFC 9112 section 4)."""
    lines = raw.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or _NAME.fullmatch(name) is None or "\n" in value or "\r" in value:
            return None
        name = name.lower()
        if name in _SINGLE:
            if name in fields:
                return None
            fields[name] = value.strip(" \t")
        elif name in {"connection", "keep-alive"}:
            fields[name] = fields.get(name, "") + "," + value.lower()
    if "content-encoding" in fields:
        return None  # none was asked for
    content_type = fields.get("content-type")
    if content_type is not None and _CONTENT_TYPE.fullmatch(content_type) is None:
        return None
    coding, stated = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None and (stated is not None or coding.lower() != "chunked"):
        return None
    if stated is not None and (
        not (stated.isascii() and stated.isdigit()) or len(stated) > _MAX_LENGTH_DIGITS
    ):
        return None
    status = int(match[1])
    length = 0 if status in BODILESS else None if stated is None else int(stated)
    chunked = coding is not None and length is None
    keep_alive = dict(_KEEP_ALIVE.findall(fields.get("keep-alive", "")))
    seconds = float(keep_alive.get("timeout", math.inf))
    reusable = (
        raw.startswith(b"HTTP/1.1")
        and "close" not in fields.get("connection", "")
        and (length is not None or chunked)
        and seconds > 0
        and float(keep_alive.get("max", 1)) > 0
    )
    return ResponseHead(
        status,
        content_type,
        length,
        chunked=chunked,
        reusable=reusable,
        keep_alive_seconds=seconds,
    )
