"""Rules: what a model hub's refusals mean, and which hosts its bytes may come from.

Imports no I/O; never raises on bad
input.

`companion models add hf:OWNER/NAME`, which is not built yet, will call them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Final

__all__ = ["HubProblem", "explain_answer", "is_hub_host", "wait_seconds"]

MAX_WAIT_SECONDS: Final = 300
_HUB_HOSTS: Final = ("hf.co", "huggingface.co")
_HTTPS_PORT: Final = 443


class HubProblem(enum.Enum):
    """Why a hub did not give what was asked for; the value is what the person is told."""

    GATED = "its owner wants to know who takes it: accept the terms on its page, then give a token"
    NOT_GRANTED = "the token's owner has no access to it yet: ask for it on its page"
    ABSENT_OR_PRIVATE = (
        "there is no such repository, or it is private: check the name, or give a token"
    )
    ABSENT = "there is none of that name that the token's owner may see"
    BAD_TOKEN = "the token is not valid"  # noqa: S105 - a message, not a secret
    NO_REVISION = "there is no such revision in it"
    NO_FILE = "there is no such file in it"
    DISABLED = "the hub has disabled it"
    LIMITED = "the hub answers no more requests for now"
    FAILED = "the hub could not answer"


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
