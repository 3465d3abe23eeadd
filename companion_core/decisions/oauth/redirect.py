"""Rules for this file: the redirect URI and the query that comes back on it (RFC 8252 7.3).

The URI is sent unchanged, so it must be canonical already: lower-case http, a loopback literal, a
decimal port, a plain path. A caller may narrow the hosts, never widen them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.oauth.grammar import MAX_BYTES, PATH, has_dot_segment
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason

__all__ = ["RedirectUri", "admit_redirect_uri", "parse_redirect_query"]

# `localhost` is a name that something else may resolve: only on request (RFC 8252 8.3).
_DEFAULT_HOSTS: Final = frozenset({"127.0.0.1", "::1"})
_LOOPBACK_HOSTS: Final = _DEFAULT_HOSTS | {"localhost"}

_URI: Final = re.compile(
    r"http://(?P<host>[a-z0-9.]+|\[::1\])"  # `_hosts` says which of them are allowed
    r":(?P<port>[1-9][0-9]{0,4})"
    rf"(?P<path>{PATH})"
)
_HTTP_PORT: Final = 80  # parsers drop it, so what is sent would not be what is compared
_MAX_PORT: Final = 65535
_MAX_FIELDS: Final = 32


@dataclass(frozen=True, slots=True)
class RedirectUri(Evidence):
    """A loopback redirect URI, proved canonical.

    Attributes:
        text: the URI as it is sent.
        host: `127.0.0.1`, `::1` or `localhost`.
        port: 1 to 65535.
        path: as in `text`; "/" if that has none.
    """

    text: str
    host: str
    port: int
    path: str


def _hosts(allowed: object) -> frozenset[str]:
    if not isinstance(allowed, list | tuple) or not allowed:
        return _DEFAULT_HOSTS
    named = {host.lower() for host in allowed if isinstance(host, str)}
    return _LOOPBACK_HOSTS & named


def admit_redirect_uri(uri: object, allowed_hosts: object = None) -> RedirectUri | Verdict:
    """Return the URI as evidence, or `invalid_redirect_uri` (RFC 8252 7.3).

    Args:
        uri: at most 8192 characters.
        allowed_hosts: a list that narrows the loopback hosts, or names `localhost` too; if it
            is empty or not a list, the two address literals are allowed.
    """
    if isinstance(uri, str) and len(uri) <= MAX_BYTES and (match := _URI.fullmatch(uri)):
        host = match["host"].strip("[]")
        port = int(match["port"])
        path = match["path"]
        if (
            host in _hosts(allowed_hosts)
            and port <= _MAX_PORT
            and port != _HTTP_PORT
            and not has_dot_segment(path)
        ):
            return RedirectUri(text=uri, host=host, port=port, path=path or "/")
    return refuse(Reason.INVALID_REDIRECT_URI)


def parse_redirect_query(query: object) -> Mapping[str, str] | Verdict:
    """Return the parameters of an answer, or `malformed_input`.

    A parameter that occurs twice is refused: to choose one would be a guess (RFC 6749 3.1). At
    most 32 parameters in 8192 ASCII characters.
    """
    if not isinstance(query, str) or not query.isascii() or len(query) > MAX_BYTES:
        return refuse(Reason.MALFORMED_INPUT)
    try:
        pairs = parse_qsl(
            query,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        return refuse(Reason.MALFORMED_INPUT)
    params = dict(pairs)
    if len(params) != len(pairs):
        return refuse(Reason.MALFORMED_INPUT)
    return MappingProxyType(params)
