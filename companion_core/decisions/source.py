"""Rules: a model is fetched only from an `https` address that an allow-list names (I-03).

An address is compared as parsed origin and whole path segments, never as text. Anything two
parsers could read differently is refused. Imports no I/O; never raises.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["HttpsUrl", "SourceUrl", "admit_source", "check_source_url", "parse_https_url"]

MAX_URL_LENGTH: Final = 8192
DEFAULT_PORT: Final = 443
MAX_PORT: Final = 65535

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# RFC 3986: authority, path, query and fragment, of the characters that it allows unescaped.
_HIERARCHY = re.compile(
    r"//(?P<authority>[^/?#]+)"
    r"(?P<path>(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?)"
    r"(?P<query>(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?)"
    r"(?:#(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_AUTHORITY = re.compile(
    r"(?P<userinfo>[^@\[\]]*@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# Encoded dots, separators and control characters mean one thing here and another to a server.
_ENCODED_TROUBLE = re.compile(r"%(?:2[eEfF]|5[cC]|[01][0-9A-Fa-f]|7[fF])")


@dataclass(frozen=True, slots=True)
class HttpsUrl:
    """A well-formed `https` address; that says nothing about whether it is allowed.

    Attributes:
        host: lower case; an IPv6 address without brackets.
        path: "" or with a leading "/".
        query: "" or with its "?".
    """

    host: str
    port: int
    path: str
    query: str

    @property
    def text(self) -> str:
        """The address written out, without the fragment."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"https://{host}{port}{self.target}"

    @property
    def target(self) -> str:
        """The request target: path and query."""
        return f"{self.path or '/'}{self.query}"


@dataclass(frozen=True, slots=True)
class SourceUrl(Evidence):
    """Proof that an address is on the allow-list; made by `admit_source` alone."""

    text: str
    host: str
    port: int
    path: str


def parse_https_url(url: object) -> HttpsUrl | Verdict:
    """Return the parsed address, or why it is refused.

    Refusals: `malformed_spec` when it is no absolute address, `scheme_not_allowed` for
    anything but https, `source_not_allowed` when it parses but parsers or servers disagree
    on what it means (userinfo, dot segments, encoded separators, a trailing dot).
    """
    if type(url) is not str or len(url) > MAX_URL_LENGTH:
        return refuse(Reason.MALFORMED_SPEC)
    scheme = _SCHEME.match(url)
    if scheme is None:
        return refuse(Reason.MALFORMED_SPEC)
    if scheme[1].lower() != "https":
        return refuse(Reason.SCHEME_NOT_ALLOWED)
    parts = _HIERARCHY.fullmatch(url, scheme.end())
    authority = None if parts is None else _AUTHORITY.fullmatch(parts["authority"])
    if parts is None or authority is None:
        return refuse(Reason.MALFORMED_SPEC)
    host = _host(authority["v6"], authority["name"])
    port = DEFAULT_PORT if authority["port"] is None else int(authority["port"])
    if host is None or port > MAX_PORT:
        return refuse(Reason.MALFORMED_SPEC)
    path = parts["path"]
    if (
        authority["userinfo"] is not None
        or host.endswith(".")
        or _ENCODED_TROUBLE.search(path)
        or not {".", ".."}.isdisjoint(path.split("/"))
    ):
        return refuse(Reason.SOURCE_NOT_ALLOWED)
    return HttpsUrl(host, port, path, parts["query"])


def _host(v6: str | None, name: str) -> str | None:
    """Return the host in its one spelling, or None when it is malformed."""
    try:
        if v6 is not None:
            address = ipaddress.IPv6Address(v6)
            return None if address.ipv4_mapped is not None else address.compressed
        host = name.lower()
        labels = host.removesuffix(".").split(".")
        # A last label that is a number makes an IPv4 address for some parsers ("127.1", "0x7f").
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    return host if all(map(_LABEL.fullmatch, labels)) else None


def admit_source(url: object, allowed: object) -> SourceUrl | Verdict:
    """Return proof that `url` may be fetched, or why not (I-03).

    Args:
        url: the address, as text.
        allowed: a list or tuple of allowed addresses. An entry covers its own origin and
            its path, at segment boundaries; an entry that is not a plain https address, or
            has a query or fragment, covers nothing.
    """
    if type(url) is not str or not url:
        return refuse(Reason.MALFORMED_SPEC)
    if not isinstance(allowed, list | tuple) or not allowed:
        return refuse(Reason.SOURCE_NOT_ALLOWED)
    parsed = parse_https_url(url)
    if isinstance(parsed, Verdict):
        return parsed
    if not any(_covers(entry, parsed) for entry in allowed):
        return refuse(Reason.SOURCE_NOT_ALLOWED)
    return SourceUrl(parsed.text, parsed.host, parsed.port, parsed.path or "/")


def _covers(entry: object, url: HttpsUrl) -> bool:
    base = parse_https_url(entry)
    if isinstance(base, Verdict) or base.query or "#" in str(entry):
        return False
    if (base.host, base.port) != (url.host, url.port):
        return False
    folder = base.path.removesuffix("/")
    return url.path == folder or url.path.startswith(folder + "/") or not folder


def check_source_url(url: object, allowed: object) -> Verdict:
    """Judge as `admit_source` does, for callers that need only the answer."""
    admitted = admit_source(url, allowed)
    return admitted if isinstance(admitted, Verdict) else OK
