"""Rules for this file: decide from a request's head alone whether a local program sent it.

`GUARD_ORDER` is the order, as data; the first step that fails is the answer. A part that is
missing, ambiguous, empty or unknown refuses (I-10, I-16, I-17). No I/O.

The gateway calls `verify_request`. Only the known answers of `tests/vectors` ask
`is_loopback_host`, `counts_toward_rate` and `fold_headers`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = [
    "GUARD_ORDER",
    "HEALTH_PATH",
    "MINIMUM_TOKEN_LENGTH",
    "GuardPolicy",
    "GuardStep",
    "RateBudgets",
    "bearer_token",
    "counts_toward_rate",
    "fold_headers",
    "guard_policy",
    "is_loopback_host",
    "loopback_hosts",
    "parse_host",
    "presented_token",
    "tokens_equal",
    "verify_request",
]

HEALTH_PATH: Final = "/-/health"
MINIMUM_TOKEN_LENGTH: Final = 43  # 256 bits in unpadded base64url


@dataclass(frozen=True, slots=True)
class GuardStep:
    """One step of the guard: its name, its possible answers, whether a request there counts."""

    name: str
    reasons: tuple[Reason, ...]
    counted: bool


# `verify_request` is this table written out: a call for each step would double what it costs.
# The tests hold the two together, step by step and pair by pair.
GUARD_ORDER: Final[tuple[GuardStep, ...]] = (
    GuardStep("structure", (Reason.MALFORMED_REQUEST,), counted=False),
    GuardStep("method", (Reason.METHOD_NOT_ALLOWED,), counted=False),
    GuardStep("path", (Reason.PATH_NOT_ALLOWED,), counted=False),
    GuardStep("host", (Reason.HOST_NOT_ALLOWED,), counted=False),
    GuardStep("origin", (Reason.CROSS_SITE_FORBIDDEN,), counted=False),
    GuardStep("rate", (Reason.RATE_STATE_UNAVAILABLE, Reason.RATE_LIMITED), counted=False),
    GuardStep("token", (Reason.MISSING_TOKEN, Reason.INVALID_TOKEN, Reason.OK), counted=True),
)
_COUNTED = frozenset(reason for step in GUARD_ORDER if step.counted for reason in step.reasons)

_METHODS = frozenset({"GET", "POST"})
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
# A request with only these fields has no Origin and no fetch metadata to look at.
_PROGRAM_FIELDS = frozenset(
    {
        "accept",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "x-api-key",
    }
)
_OWS = " \t"  # RFC 9110 section 5.6.3; no other space is trimmed
# RFC 9110 section 11.1 (the scheme ignores case) and RFC 6750 section 2.1 (b64token).
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9\-._~+/]+=*)[ \t]*", re.ASCII)
# What stands for two different credentials: it is presented, and no token is equal to it.
_CONTRADICTION: Final = " "
_KEY = re.compile(r"[!-~]+", re.ASCII)
# RFC 9110 section 7.2: uri-host [ ":" port ].
_HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|(?P<name>[A-Za-z0-9\-._~%!$&'()*+;=]+))"
    r"(?::(?P<port>[0-9]*))?",
    re.ASCII,
)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_LARGEST_PORT = 65535

_MALFORMED = refuse(Reason.MALFORMED_REQUEST)
_METHOD = refuse(Reason.METHOD_NOT_ALLOWED)
_PATH = refuse(Reason.PATH_NOT_ALLOWED)
_FOREIGN_HOST = refuse(Reason.HOST_NOT_ALLOWED)
_CROSS_SITE = refuse(Reason.CROSS_SITE_FORBIDDEN)
_NO_RATE_STATE = refuse(Reason.RATE_STATE_UNAVAILABLE)
_MISSING_TOKEN = refuse(Reason.MISSING_TOKEN)
_INVALID_TOKEN = refuse(Reason.INVALID_TOKEN)


@dataclass(frozen=True, slots=True)
class RateBudgets:
    """Two budgets, so that a stranger's failed tokens cannot lock the owner out."""

    owner: RateWindow | None
    strangers: RateWindow | None


class _Expected:
    """Holds the token's bytes beside the fields, so that nothing shows or copies them."""

    __slots__ = ("expected",)
    expected: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy(_Expected):
    """What the guard compares with; `guard_policy` makes it.

    Attributes:
        hosts: the exact Host values, in lower case; empty admits nothing.
        routes: path to method; empty admits nothing.
        token: the expected token; None admits nothing.
        expected: the token's bytes, made once: the guard compares them on each request.
    """

    hosts: frozenset[str]
    routes: Mapping[str, str]
    token: Secret | None

    def __post_init__(self) -> None:
        encoded = None if self.token is None else _encode(self.token.reveal())
        object.__setattr__(self, "expected", encoded)


def guard_policy(
    *,
    hosts: object,
    routes: Mapping[str, str],
    token: Secret | None,
    minimum_token_length: int = MINIMUM_TOKEN_LENGTH,
) -> GuardPolicy:
    """Return the policy; malformed parts are left out, and what is left out is refused.

    Args:
        hosts: `name:port` texts; only loopback names with a decimal port count.
        routes: path to method.
        token: the expected token.
        minimum_token_length: in bytes; a shorter token is never accepted.
    """
    listed = hosts if isinstance(hosts, list | tuple | frozenset) else ()
    encoded = _encode(token.reveal()) if isinstance(token, Secret) else None
    return GuardPolicy(
        hosts=frozenset(
            entry.lower() for entry in listed if isinstance(entry, str) and _is_bound_host(entry)
        ),
        routes=routes,
        token=token if encoded and len(encoded) >= minimum_token_length else None,
    )


def loopback_hosts(address: object, port: object) -> tuple[str, ...]:
    """Return the Host values that name a listener; empty for anything but loopback.

    Args:
        address: the bound address, "127.0.0.1" or "::1".
        port: the bound port.
    """
    if type(port) is not int or not 0 < port <= _LARGEST_PORT:
        return ()
    if address == "127.0.0.1":
        return (f"127.0.0.1:{port}", f"localhost:{port}")
    if address == "::1":
        return (f"[::1]:{port}",)
    return ()


def parse_host(value: object) -> tuple[str, str] | None:
    """Return host and port ("" if none) of a Host value; None for anything malformed."""
    if not isinstance(value, str):
        return None
    match = _HOST.fullmatch(value.strip(_OWS))
    if match is None:
        return None
    return (match["ipv6"] or match["name"], match["port"] or "")


def is_loopback_host(value: object) -> bool:
    """Tell whether a Host value names loopback literally, whatever its port."""
    parsed = parse_host(value)
    return parsed is not None and parsed[0].lower() in _LOOPBACK_NAMES


def _is_bound_host(entry: str) -> bool:
    parsed = parse_host(entry)
    return (
        parsed is not None
        and entry.isascii()
        and entry.strip(_OWS) == entry
        and parsed[0].lower() in _LOOPBACK_NAMES
        and _PORT.fullmatch(parsed[1]) is not None
        and int(parsed[1]) <= _LARGEST_PORT
    )


def _encode(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None  # a lone surrogate has no bytes, so it equals nothing


def tokens_equal(first: object, second: object) -> bool:
    """Compare two texts in constant time, by their bytes; empty or malformed is never equal."""
    left, right = _encode(first), _encode(second)
    if not left or not right:
        return False
    return hmac.compare_digest(left, right)


def bearer_token(authorization: object) -> str:
    """Return the token of an Authorization value, or "" (RFC 6750 section 2.1)."""
    if not isinstance(authorization, str):
        return ""
    match = _BEARER.fullmatch(authorization)
    return match[1] if match is not None else ""


def presented_token(authorization: object, api_key: object) -> str:
    """Return the token that a request shows, or "" if it shows none.

    Anthropic's clients send `x-api-key`, some beside a Bearer token. Two that differ are a
    contradiction, and are equal to no token.

    Args:
        authorization: the value of that field; None if it is not there.
        api_key: the value of `x-api-key`; None if it is not there.
    """
    if api_key is None:
        return bearer_token(authorization)
    key = api_key if isinstance(api_key, str) and _KEY.fullmatch(api_key) else ""
    if authorization is None:
        return key
    bearer = bearer_token(authorization)
    return bearer if key and tokens_equal(bearer, key) else _CONTRADICTION


def counts_toward_rate(reason: object) -> bool:
    """Tell whether a request with this answer used up a place in its rate window."""
    return isinstance(reason, str) and reason in _COUNTED


def fold_headers(headers: object) -> dict[str, object] | None:
    """Return headers under lower-case names; None unless it is a mapping.

    A name that occurs under two spellings gets a value that no rule accepts.
    """
    if not isinstance(headers, Mapping):
        return None
    folded: dict[str, object] = {}
    for name, value in headers.items():
        key = name.lower() if isinstance(name, str) else ""
        folded[key] = None if key in folded else value
    return folded


def _same_origin(headers: Mapping[str, object], host: str) -> bool:
    """Decide Origin and fetch metadata (W3C Fetch Metadata, RFC 6454 section 7)."""
    if "origin" in headers:
        origin = headers["origin"]
        if not isinstance(origin, str) or origin.strip(_OWS).lower() != f"http://{host}":
            return False
    metadata = 0
    for name in headers:
        if name[:10] == "sec-fetch-":
            metadata += 1
    if not metadata:
        return True
    if metadata == 1 and "sec-fetch-mode" in headers and "origin" not in headers:
        # Node's own fetch sends exactly this, and no browser does.
        return headers["sec-fetch-mode"] == "cors"
    site = headers.get("sec-fetch-site")
    return isinstance(site, str) and site.strip(_OWS).lower() in {"same-origin", "none"}


def verify_request(  # noqa: PLR0917 - called per request, where keywords cost time
    method: object,
    path: object,
    headers: object,
    token: object,
    policy: GuardPolicy,
    budgets: RateBudgets,
    now: object,
) -> Verdict:
    """Run `GUARD_ORDER` on one request and count it in its rate window, in one step.

    A constant-time comparison of the token selects the budget before anything is counted. The
    owner's health checks are not counted.

    Args:
        method: as sent.
        path: without a query.
        headers: under lower-case names, each at most once.
        token: from `presented_token`.
        policy: what to compare with.
        budgets: the rate windows; a missing one refuses.
        now: monotonic, in the unit of the windows.
    """
    if not (isinstance(method, str) and method and isinstance(headers, dict) and is_finite(now)):
        return _MALFORMED
    if method not in _METHODS:
        method = method.upper() if method.isascii() else ""
        if method not in _METHODS:
            return _METHOD
    routed = policy.routes.get(path) if isinstance(path, str) else None
    if routed is None:
        return _PATH
    if routed != method:
        return _METHOD

    host = headers.get("host")
    if not isinstance(host, str):
        return _FOREIGN_HOST
    if host not in policy.hosts:
        host = host.strip(_OWS).lower()
        if host not in policy.hosts:
            return _FOREIGN_HOST
    if not (_PROGRAM_FIELDS.issuperset(headers) or _same_origin(headers, host)):
        return _CROSS_SITE

    presented, expected = _encode(token), policy.expected
    owner = presented and expected and hmac.compare_digest(presented, expected)
    if not (owner and path == HEALTH_PATH):
        window = budgets.owner if owner else budgets.strangers
        if window is None:
            return _NO_RATE_STATE
        verdict = window.take(now)
        if verdict is not OK:
            return verdict
    if owner:
        return OK
    return _INVALID_TOKEN if isinstance(token, str) and token else _MISSING_TOKEN
