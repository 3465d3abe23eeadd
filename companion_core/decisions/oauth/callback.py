"""Rules for this file: what a request to the redirect listener is, and how it is answered.

Any program and any web page of the machine can reach that port. Exactly one form of request is an
answer of the browser: GET, the path, the Host and HTTP/1.1, each as the listener wrote it. Every
other one gets a status and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.oauth.redirect import parse_redirect_query
from companion_core.decisions.verdict import Verdict

__all__ = ["MAX_HEAD_BYTES", "Callback", "read_callback"]

MAX_HEAD_BYTES: Final = 32 * 1024

_REQUEST_LINE: Final = re.compile(
    rb"(?P<method>[A-Z]{1,16}) (?P<path>/[!$-;=@-~]*)(?:\?(?P<query>[!$-~]*))? HTTP/1\.[01]"
)
_HEADER: Final = re.compile(rb"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(?P<value>[^\r\n\0]*)")
_BODY_HEADERS: Final = frozenset({b"transfer-encoding", b"content-length"})

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A request, judged.

    Attributes:
        status: to answer with, where `params` is None.
        params: of the redirect; None if the request is no answer of the browser.
        malformed: it came on the right path, and its query has no single reading.
    """

    status: int
    params: Mapping[str, str] | None = None
    malformed: bool = False


def read_callback(head: object, *, host: object, path: object) -> Callback:
    """Return what a request's head is.

    Args:
        head: the bytes up to the empty line, without it.
        host: the exact Host header, such as 127.0.0.1:49152.
        path: the exact path of the redirect URI.
    """
    if not (isinstance(head, bytes) and isinstance(host, str) and isinstance(path, str)):
        return Callback(status=_BAD_REQUEST)
    if len(head) > MAX_HEAD_BYTES:
        return Callback(status=_BAD_REQUEST)
    first, *rest = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    headers = [_HEADER.fullmatch(each) for each in rest]
    if line is None or None in headers:
        return Callback(status=_BAD_REQUEST)
    named = [(h["name"].lower(), h["value"].strip(b" \t")) for h in headers if h is not None]
    hosts = [value for name, value in named if name == b"host"]
    if len(hosts) != 1 or any(name in _BODY_HEADERS and value != b"0" for name, value in named):
        return Callback(status=_BAD_REQUEST)
    if hosts[0] != host.encode(errors="surrogatepass"):
        return Callback(status=_FORBIDDEN)
    if line["path"] != path.encode(errors="surrogatepass"):
        return Callback(status=_NOT_FOUND)
    if line["method"] != b"GET":
        return Callback(status=_NOT_ALLOWED)
    if not line["query"]:
        return Callback(status=_BAD_REQUEST)
    params = parse_redirect_query(line["query"].decode("ascii"))
    if isinstance(params, Verdict):
        return Callback(status=_BAD_REQUEST, malformed=True)
    return Callback(status=_BAD_REQUEST, params=params)
