"""Rules: where a model hub is, what its refusals mean, and which hosts its bytes may come from.

Imports no I/O; never raises on bad input.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.source import (
    HttpsUrl,
    SourceUrl,
    admit_source,
    parse_https_url,
)
from companion_core.decisions.verdict import Verdict

__all__ = [
    "HubProblem",
    "HubSettings",
    "admit_redirect",
    "explain_answer",
    "hub_settings",
    "is_hop_admitted",
    "is_hub_host",
    "stated_digest",
    "wait_seconds",
]

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_TRUE: Final = frozenset({"1", "on", "yes", "true"})  # as the hub's own client reads it
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

MAX_WAIT_SECONDS: Final = 300
_HUB_HOSTS: Final = ("hf.co", "huggingface.co")
_HTTPS_PORT: Final = 443


class HubProblem(enum.Enum):
    """Why a hub did not give what was asked for, and what to do; `{page}` is the repository's."""

    GATED = (
        "its owner wants to know who takes it: accept the terms on its page {page}, then send your "
        "token with --hub-token"
    )
    NOT_GRANTED = "the token's owner has no access to it yet: ask for it on its page {page}"
    ABSENT_OR_PRIVATE = (
        "there is no such repository, or it is private: check the name, or send your token with "
        "--hub-token"
    )
    ABSENT = "there is none of that name that the token's owner may see: check the name"
    BAD_TOKEN = (
        "the token is not valid: make another in your settings there, or leave --hub-token out"  # noqa: S105 - words
    )
    NO_REVISION = "there is no such revision in it: see {page}"
    NO_FILE = "there is no such file in it: see {page}"
    DISABLED = "the hub has disabled it: choose another one"
    LIMITED = (
        "the hub answers no more requests for now: try again in some minutes; with --hub-token it "
        "answers more"
    )
    FAILED = "the hub could not answer: try again later"

    def words(self, page: str) -> str:
        """Return what the person is told; `page` is the repository's address."""
        return self.value.format(page=page)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """What the environment says about the hub, under the names that its own client reads.

    Attributes:
        endpoint: `HF_ENDPOINT`, or the public hub; a `Verdict` if it is no https address.
        offline: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`: nothing is asked.
    """

    endpoint: HttpsUrl | Verdict
    offline: bool


def hub_settings(environment: object) -> HubSettings:
    """Return what an environment, by name, says about the hub."""
    told = environment if isinstance(environment, Mapping) else {}
    named = str(told.get("HF_ENDPOINT") or "").strip().rstrip("/")
    offline = any(
        str(told.get(name, "")).strip().lower() in _TRUE
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    return HubSettings(endpoint=parse_https_url(named or DEFAULT_ENDPOINT), offline=offline)


def is_hop_admitted(endpoint: object, hop: object) -> bool:
    """Tell whether a hub at `endpoint` may send those who fetch a file to `hop`; `HttpsUrl`s.

    A hub may send to itself, to a host below its own, and to the public hub's hosts; one on this
    machine to any port of this machine.
    """
    if type(endpoint) is not HttpsUrl or type(hop) is not HttpsUrl:
        return False
    if is_hub_host(hop.host, hop.port) or (hop.host, hop.port) == (endpoint.host, endpoint.port):
        return True
    if endpoint.host in _LOOPBACK:
        return hop.host in _LOOPBACK
    return hop.port == _HTTPS_PORT and hop.host.endswith("." + endpoint.host)


def admit_redirect(source: object, leads_to: object, allowed: object) -> SourceUrl | Verdict:
    """Return proof that a redirect of a signed address may be followed, or why not (I-03).

    The public hub's byte hosts change, so none of them is signed: they are one closed entry, for
    redirects of an address of the public hub's own and of no other.

    Args:
        source: the signed address as a `SourceUrl`, whatever the hops after it were.
        leads_to: where the redirect leads.
        allowed: as for `admit_source`.
    """
    admitted = admit_source(leads_to, allowed)
    if not isinstance(admitted, Verdict) or type(source) is not SourceUrl:
        return admitted
    if source.host not in _HUB_HOSTS or source.port != _HTTPS_PORT:
        return admitted
    hop = parse_https_url(leads_to)
    if isinstance(hop, HttpsUrl) and is_hub_host(hop.host, hop.port):
        return admit_source(leads_to, [f"https://{hop.host}/"])
    return admitted


def stated_digest(headers: object) -> tuple[str | None, int | None]:
    """Return the SHA-256 and the size that a hub states where it redirects to a large file.

    Args:
        headers: by name in small letters: `X-Linked-Etag`, `X-Linked-Size`.
    """
    told = headers if isinstance(headers, Mapping) else {}
    digest = re.fullmatch(r'"([0-9a-f]{64})"', str(told.get("x-linked-etag", "")))
    size = re.fullmatch(r"[0-9]{1,16}", str(told.get("x-linked-size", "")))
    return (None if digest is None else digest[1], None if size is None else int(size[0]))


def is_hub_host(host: object, port: object) -> bool:
    """Tell whether bytes of the public hub may come from this host: it, or one below it (I-03)."""
    if type(host) is not str or port != _HTTPS_PORT:
        return False
    return any(host == each or host.endswith("." + each) for each in _HUB_HOSTS)


def explain_answer(status: object, headers: object, *, with_token: object) -> HubProblem | None:
    """Return what an answer of the hub means; None if it is no refusal.

    Args:
        status: of the answer.
        headers: by name in small letters.
        with_token: a token was sent.
    """
    told = headers if isinstance(headers, Mapping) else {}
    if type(status) is not int or status < 400:  # noqa: PLR2004 - the first status of a refusal
        return None
    code, message = str(told.get("x-error-code", "")), str(told.get("x-error-message", ""))
    by_code = {
        "RevisionNotFound": HubProblem.NO_REVISION,
        "EntryNotFound": HubProblem.NO_FILE,
        "GatedRepo": HubProblem.NOT_GRANTED if with_token is True else HubProblem.GATED,
    }
    if code in by_code:
        return by_code[code]
    if message.startswith("Invalid credentials"):
        return HubProblem.BAD_TOKEN
    if message == "Access to this resource is disabled.":
        return HubProblem.DISABLED
    absent = HubProblem.ABSENT if with_token is True else HubProblem.ABSENT_OR_PRIVATE
    return {401: absent, 404: absent, 429: HubProblem.LIMITED}.get(status, HubProblem.FAILED)


def wait_seconds(headers: object) -> int | None:
    """Return after how many seconds the hub answers again, or None if it does not say so.

    Args:
        headers: by name in small letters: `RateLimit` (`"api";r=0;t=55`) or `Retry-After`.
    """
    told = headers if isinstance(headers, Mapping) else {}
    found = re.search(r";\s*t=(\d{1,9})(?:\s*;|\s*$)", str(told.get("ratelimit", "")))
    if found is None:
        found = re.fullmatch(r"\s*(\d{1,9})\s*", str(told.get("retry-after", "")))
    return None if found is None else min(int(found[1]) + 1, MAX_WAIT_SECONDS)
