"""Rules: what address a redirect's Location means, and how it is named to a person.

A Location is read as other clients read it (RFC 3986 section 5, RFC 3987 section 3.1): relative
to the address that gave it, with what may not stand in an address escaped as UTF-8. Whether the
address may be used is decided by `source.py`. Imports no I/O; never raises.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Final

from companion_core.decisions.source import MAX_URL_LENGTH

__all__ = ["name_address", "read_location", "resolve_redirect"]

MAX_NAMED: Final = 200
_REFERENCE = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:)?(?P<authority>//[^/?#]*)?(?P<rest>[^#]*)(?:#.*)?",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What RFC 3986 does not let stand unescaped in a path or query; a lone "%" is such a character.
_TO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]")


def read_location(value: bytes) -> str:
    """Return a Location header as text; bytes that are no UTF-8 are escaped one by one."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in value)  # noqa: PLR2004 - the end of ASCII


def resolve_redirect(base: str, location: str) -> str | None:
    """Return the absolute address, without a fragment; None when it is no address.

    Args:
        base: the address that redirects.
        location: its Location; a host of other letters than ASCII's is taken as IDNA (UTS 46).
    """
    location = location.strip(" ")
    if len(location) > MAX_URL_LENGTH or _CONTROL.search(location):
        return None
    parts = _REFERENCE.fullmatch(location)
    if parts is None:
        return None
    try:
        authority = _ascii_authority(parts["authority"] or "")
        escaped = _TO_ESCAPE.sub(lambda found: _percent(found[0]), parts["rest"])
        return urllib.parse.urljoin(base, f"{parts['scheme'] or ''}{authority}{escaped}")
    except ValueError:  # a host that IDNA or urllib refuses, or half a surrogate pair
        return None


def name_address(url: str) -> str:
    """Return an address as a person is shown it: no userinfo, no query, printable, bounded."""
    parts = _REFERENCE.fullmatch(url)
    if parts is None:
        return "an unreadable address"
    authority = (parts["authority"] or "").removeprefix("//").rpartition("@")[2]
    slashes = "//" if parts["authority"] else ""
    text = f"{parts['scheme'] or ''}{slashes}{authority}{parts['rest'].partition('?')[0]}"
    shown = "".join(letter if "!" <= letter <= "~" else "?" for letter in text)
    return shown if len(shown) <= MAX_NAMED else f"{shown[:MAX_NAMED]}…"


def _ascii_authority(authority: str) -> str:
    if authority.isascii() or "@" in authority:  # userinfo is refused, whatever its letters
        return authority
    import idna  # noqa: PLC0415 - its tables are large, and few hosts need them

    host, colon, port = authority.removeprefix("//").partition(":")
    return f"//{idna.encode(host, uts46=True).decode('ascii')}{colon}{port}"


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8"))
