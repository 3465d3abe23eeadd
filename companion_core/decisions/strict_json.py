"""Rules: a signed document has one reading, or it is refused.

UTF-8, no duplicate keys, no floats, NaN or lone surrogates, bounded nesting and integers.
Imports `json` for its grammar alone; never raises.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

__all__ = ["MALFORMED", "decode_base64", "parse_json"]

MAX_DEPTH: Final = 16
MAX_INTEGER_DIGITS: Final = 16
# The answer of `parse_json` to a refused document; None is a value that JSON can hold.
MALFORMED: Final = object()

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def parse_json(raw: object, *, limit: int) -> Any:
    """Return the value of a document of at most `limit` bytes, or `MALFORMED`."""
    if type(raw) is not bytes or len(raw) > limit:
        return MALFORMED
    try:
        text = raw.decode()
        if _depth(text) > MAX_DEPTH:
            return MALFORMED
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
        # Escapes can write half of a surrogate pair, which no UTF-8 text holds.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return MALFORMED
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError
    return int(text)


def _refuse(_text: str) -> Any:
    raise ValueError


def decode_base64(text: object) -> bytes | None:
    """Return the bytes of canonical standard base64 (RFC 4648 section 4), else None."""
    if type(text) is not str:
        return None
    try:
        data = base64.b64decode(text)
    except (ValueError, binascii.Error):
        return None
    # The decoder skips foreign characters; only the canonical spelling comes back unchanged.
    return data if base64.b64encode(data).decode() == text else None
