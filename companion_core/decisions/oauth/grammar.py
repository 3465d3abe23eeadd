"""Rules for this file: the character sets of OAuth (RFC 6749 appendix A) and of URLs.

Text is judged as it will be sent, never after a parser has repaired it, and within 8192 bytes.
"""

from __future__ import annotations

import hmac
import re
from typing import Final, TypeGuard

from companion_core.system.secret import Secret

__all__ = [
    "MAX_BYTES",
    "PATH",
    "constant_time_equal",
    "has_dot_segment",
    "is_bearer_token",
    "is_printable",
    "is_printable_secret",
    "is_scope_list",
    "is_scope_text",
    "is_sendable",
]

MAX_BYTES: Final = 8192

# An absolute path of RFC 3986: pchar and "/", every percent sign followed by two digits.
PATH: Final = r"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*)*"

_VSCHAR: Final = re.compile(r"[\x20-\x7e]{1,8192}")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,8192}")
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_SCOPE_TEXT: Final = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{0,8192}")
_DOT_SEGMENT: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


def is_printable(value: object) -> TypeGuard[str]:
    """Return whether `value` is 1 to 8192 characters of VSCHAR (RFC 6749 A.1, A.5, A.11, A.17)."""
    return isinstance(value, str) and _VSCHAR.fullmatch(value) is not None


def is_printable_secret(value: object) -> TypeGuard[Secret]:
    """Return whether `value` is a `Secret` of which `is_printable` holds."""
    return isinstance(value, Secret) and is_printable(value.reveal())


def is_bearer_token(value: object) -> TypeGuard[str]:
    """Return whether `value` can stand in a header: VSCHAR without the space (RFC 6750 2.1)."""
    return isinstance(value, str) and _VISIBLE.fullmatch(value) is not None


def is_sendable(value: object) -> TypeGuard[str]:
    """Return whether `value` is text that can be encoded, of at most 8192 bytes in UTF-8."""
    try:
        return isinstance(value, str) and len(value.encode()) <= MAX_BYTES
    except UnicodeEncodeError:  # a lone surrogate cannot be sent
        return False


def is_scope_text(value: object) -> TypeGuard[str]:
    """Return whether `value` is a scope as a server sends it, possibly empty (RFC 6749 A.4)."""
    return isinstance(value, str) and _SCOPE_TEXT.fullmatch(value) is not None


def is_scope_list(value: object) -> TypeGuard[list[str] | tuple[str, ...]]:
    """Return whether `value` is a non-empty list of scope tokens (RFC 6749 3.3)."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, str) and _SCOPE_TOKEN.fullmatch(item) for item in value)
        and is_scope_text(" ".join(value))
    )


def has_dot_segment(path: str) -> bool:
    """Return whether a parser would rewrite `path`: it has a "." or ".." segment, also encoded."""
    return _DOT_SEGMENT.search(path) is not None


def constant_time_equal(left: object, right: object) -> bool:
    """Return whether both are the same non-empty text, in time that tells only their lengths."""
    if not isinstance(left, str) or not isinstance(right, str) or not left:
        return False
    # Lone surrogates are kept apart, so that two different texts never become equal bytes.
    return hmac.compare_digest(
        left.encode(errors="surrogatepass"), right.encode(errors="surrogatepass")
    )
