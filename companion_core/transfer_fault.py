"""What stopped a transfer, as a closed list, and what a person is told about each.

A fault crosses the downloader's seam, so it is inert: no text of a server or of an exception. The
words name the host, which the person or their publisher configured, and no address (I-15).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = [
    "TransferFault",
    "TransferProblem",
    "explain_problem",
    "fault_of_status",
    "known_problem",
]


class TransferFault(enum.StrEnum):
    """Why bytes did not come."""

    OTHER = "other"
    UNKNOWN_HOST = "unknown_host"
    UNREACHABLE = "unreachable"
    CONNECTION_REFUSED = "connection_refused"
    TIMED_OUT = "timed_out"
    CUT_OFF = "cut_off"
    CERTIFICATE = "certificate"
    TLS = "tls"
    BROKEN_ANSWER = "broken_answer"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    TOO_MANY_REQUESTS = "too_many_requests"
    SERVER_ERROR = "server_error"
    UNEXPECTED_STATUS = "unexpected_status"
    REDIRECTED = "redirected"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    UNREADABLE_REDIRECT = "unreadable_redirect"
    PROXY_MALFORMED = "proxy_malformed"
    PROXY_UNSUPPORTED = "proxy_unsupported"
    PROXY_UNREACHABLE = "proxy_unreachable"
    PROXY_CERTIFICATE = "proxy_certificate"
    PROXY_LOGIN = "proxy_login"
    PROXY_REFUSED = "proxy_refused"
    PROXY_BROKEN = "proxy_broken"


@dataclass(frozen=True, slots=True)
class TransferProblem:
    """One failed exchange.

    Attributes:
        status: of the answer; 0 if none came.
        retry_after: seconds that the host asks to wait; None if it does not ask.
    """

    fault: TransferFault = TransferFault.OTHER
    status: int = 0
    retry_after: int | None = None


_PROXY: Final = "the proxy (HTTPS_PROXY, ALL_PROXY or the system's settings)"
# What happened, and what to do.
_WORDS: Final[Mapping[TransferFault, tuple[str, str]]] = MappingProxyType(
    {
        TransferFault.OTHER: ("the exchange with {host} failed", "try again later"),
        TransferFault.UNKNOWN_HOST: (
            "the name {host} is not known",
            "check its spelling, the network and the DNS",
        ),
        TransferFault.UNREACHABLE: (
            "{host} cannot be reached",
            "check the network; if it needs a proxy, set HTTPS_PROXY",
        ),
        TransferFault.CONNECTION_REFUSED: (
            "{host} refuses the connection",
            "check the port, or try again when its server runs",
        ),
        TransferFault.TIMED_OUT: (
            "{host} does not answer in time",
            "check the network; if it needs a proxy, set HTTPS_PROXY",
        ),
        TransferFault.CUT_OFF: (
            "{host} ended the connection before everything had come",
            "try again; what came is kept where the host allows that",
        ),
        TransferFault.CERTIFICATE: (
            "the certificate of {host} is not trusted",
            "network.extra_ca_file names a further authority, such as a company's; also check"
            " the clock",
        ),
        TransferFault.TLS: (
            "no TLS connection of version 1.2 or newer can be made to {host}",
            "its server has to be updated, or another program answers on that port",
        ),
        TransferFault.BROKEN_ANSWER: (
            "the answer of {host} is not what was asked for",
            "ask who runs it",
        ),
        TransferFault.UNAUTHORIZED: (
            "{host} answers 401: it asks for a sign-in",
            "use an address that needs none, or ask its publisher for access",
        ),
        TransferFault.FORBIDDEN: (
            "{host} answers 403: it denies access",
            "ask its publisher; a signed link may have expired",
        ),
        TransferFault.NOT_FOUND: (
            "{host} answers {status}: it has no such file",
            "check the address, or ask its publisher",
        ),
        TransferFault.TOO_MANY_REQUESTS: (
            "{host} answers {status}: too many requests",
            "try again {later}",
        ),
        TransferFault.SERVER_ERROR: (
            "{host} answers {status}: it has a fault of its own",
            "try again {later}",
        ),
        TransferFault.UNEXPECTED_STATUS: ("{host} answers {status}", "ask who runs it"),
        TransferFault.REDIRECTED: (
            "{host} answers {status}: it redirects",
            "give the address that it leads to",
        ),
        TransferFault.TOO_MANY_REDIRECTS: (
            "{host} redirects without an end",
            "ask who runs it",
        ),
        TransferFault.UNREADABLE_REDIRECT: (
            "{host} redirects to what is no address",
            "ask who runs it",
        ),
        TransferFault.PROXY_MALFORMED: (
            f"the address of {_PROXY} is malformed",
            "write it as http://USER:PASSWORD@HOST:PORT, with every other letter than a-z, A-Z,"
            " 0-9, - . _ ~ in USER and PASSWORD percent-encoded",
        ),
        TransferFault.PROXY_UNSUPPORTED: (
            f"the scheme of {_PROXY} is not supported",
            "use http, https or socks5",
        ),
        TransferFault.PROXY_UNREACHABLE: (
            f"{_PROXY} cannot be reached",
            "check its host and port; NO_PROXY names hosts that need none",
        ),
        TransferFault.PROXY_CERTIFICATE: (
            f"the certificate of {_PROXY} is not trusted",
            "network.extra_ca_file names a further authority, such as a company's",
        ),
        TransferFault.PROXY_LOGIN: (
            f"{_PROXY} answers 407: it asks for a user and password, or does not take these",
            "write them into its address: http://USER:PASSWORD@HOST:PORT",
        ),
        TransferFault.PROXY_REFUSED: (
            f"{_PROXY} does not connect to {{host}}",
            "ask who runs it; NO_PROXY names hosts that need none",
        ),
        TransferFault.PROXY_BROKEN: (
            f"{_PROXY} does not answer as a proxy of its scheme",
            "check the scheme and port of its address",
        ),
    }
)

_BY_STATUS: Final[Mapping[int, TransferFault]] = MappingProxyType(
    {
        401: TransferFault.UNAUTHORIZED,
        403: TransferFault.FORBIDDEN,
        404: TransferFault.NOT_FOUND,
        407: TransferFault.PROXY_LOGIN,
        410: TransferFault.NOT_FOUND,
        429: TransferFault.TOO_MANY_REQUESTS,
    }
)


def fault_of_status(status: int) -> TransferFault:
    """Return what a status other than the expected one means (RFC 9110 section 15)."""
    if 500 <= status <= 599:  # noqa: PLR2004 - the class of server errors
        return TransferFault.SERVER_ERROR
    if 300 <= status <= 399:  # noqa: PLR2004 - the class of redirections
        return TransferFault.REDIRECTED
    return _BY_STATUS.get(status, TransferFault.UNEXPECTED_STATUS)


def known_problem(value: object) -> TransferProblem:
    """Return what a plugin said, made anew; `OTHER` if it did not say it in these types."""
    match value:
        case TransferProblem(
            fault=TransferFault() as fault, status=int(status), retry_after=int() | None as later
        ):
            return TransferProblem(fault, status, later)
    return TransferProblem()


def explain_problem(known: TransferProblem, host: str) -> str:
    """Return what happened at `host` and what to do, for a person."""
    happened, advice = _WORDS[known.fault]
    later = "later" if known.retry_after is None else f"in {known.retry_after} seconds"
    return f"{happened}; {advice}".format(host=host, status=known.status, later=later)
