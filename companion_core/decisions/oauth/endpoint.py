"""Rules for this file: the addresses of an authorization server (RFC 6749 3.1, 3.2).

`https` with a host name, no userinfo, no fragment, nothing that two parsers could read in two
ways: a person's password, or the code and its verifier, is sent there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.oauth.grammar import MAX_BYTES, PATH, has_dot_segment
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["Endpoint", "admit_endpoint", "check_endpoints_of_issuer"]

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_ENDPOINT: Final = re.compile(
    rf"(?i:https)://(?P<host>{_LABEL}(?:\.{_LABEL})*)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    rf"(?P<path>{PATH})"
    r"(?:\?(?P<query>(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*))?"
)
_HTTPS_PORT: Final = 443
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Endpoint(Evidence):
    """An https address, proved plain.

    Attributes:
        origin: scheme, lower-case host, and the port where it is not 443.
        path: "/" if the address has none.
        query: the endpoint's own, kept unchanged (RFC 6749 3.1); "" if it has none.
    """

    origin: str
    path: str
    query: str

    @property
    def base(self) -> str:
        """The address without its query."""
        return self.origin + self.path

    @property
    def url(self) -> str:
        """The whole address."""
        return f"{self.base}?{self.query}" if self.query else self.base


def admit_endpoint(url: object) -> Endpoint | Verdict:
    """Return `url` as evidence, or `malformed_input`; at most 8192 characters."""
    if isinstance(url, str) and len(url) <= MAX_BYTES and (match := _ENDPOINT.fullmatch(url)):
        port = int(match["port"] or _HTTPS_PORT)
        path = match["path"] or "/"
        if port <= _MAX_PORT and not has_dot_segment(path):
            suffix = "" if port == _HTTPS_PORT else f":{port}"
            return Endpoint(
                origin=f"https://{match['host'].lower()}{suffix}",
                path=path,
                query=match["query"] or "",
            )
    return refuse(Reason.MALFORMED_INPUT)


def check_endpoints_of_issuer(issuer: object, *endpoints: object) -> Verdict:
    """Return whether every endpoint belongs to the issuer's own origin (RFC 9207 section 4).

    The code and the verifier are sent to the token endpoint; an endpoint that another server
    named would get both. No endpoint at all is a mismatch (I-16).
    """
    home = admit_endpoint(issuer)
    if isinstance(home, Verdict) or not endpoints:
        return refuse(Reason.ISSUER_MISMATCH)
    for url in endpoints:
        endpoint = admit_endpoint(url)
        if isinstance(endpoint, Verdict) or endpoint.origin != home.origin:
            return refuse(Reason.ISSUER_MISMATCH)
    return OK
