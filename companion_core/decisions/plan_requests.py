"""Rules for this file: what a plan may say of requests, its own and those of clients.

Pure; imports values and text rules only. Like the plan itself its parts are rebuilt from
primitives of exact types, and None refuses the whole.
"""

from __future__ import annotations

import re
from typing import Final

from companion_core.decisions.plan_texts import MOST_ITEMS, plain_name, plain_text, plain_texts
from companion_core.errors import Reason
from companion_core.providers import BackendRequest, Dialect, Expected

__all__ = ["rebuild_dialect", "rebuild_requests"]

_MAX_PREPARE = 16
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT"})
_STATUSES = range(100, 600)
_REQUEST_PATH = re.compile(r"/[!-~]{0,1023}\Z")
# With which a start may end because an answer does not say what was expected.
_REASONS: Final = frozenset(
    {Reason.SPAWN_FAILED, Reason.CHAT_TEMPLATE_UNSUPPORTED, Reason.MODEL_FORMAT_UNSUPPORTED}
)


def rebuild_requests(value: object) -> tuple[BackendRequest, ...] | None:
    """Return a plugin's requests made anew, or None where one is not allowed."""
    if type(value) is not tuple or len(value) > _MAX_PREPARE:
        return None
    requests = tuple(rebuilt for item in value if (rebuilt := _request(item)) is not None)
    return requests if len(requests) == len(value) else None


def _request(value: object) -> BackendRequest | None:
    if type(value) is not BackendRequest or type(value.method) is not str:
        return None
    if value.method not in _METHODS or type(value.path) is not str:
        return None
    if not _REQUEST_PATH.match(value.path) or type(value.send_model) is not bool:
        return None
    if value.json is not None and (plain_text(value.json) is None or value.send_model):
        return None
    if value.expect_last_line is not None and plain_text(value.expect_last_line) is None:
        return None
    if type(value.unless_stored) is not bool:
        return None
    expect = _expect(value.expect)
    if expect is None:
        return None
    statuses = value.expect_status
    if type(statuses) is not tuple or not 0 < len(statuses) <= MOST_ITEMS:
        return None
    if any(type(status) is not int or status not in _STATUSES for status in statuses):
        return None
    return BackendRequest(
        method=value.method,
        path=value.path,
        json=value.json,
        send_model=value.send_model,
        expect_status=statuses,
        expect_last_line=value.expect_last_line,
        unless_stored=value.unless_stored,
        expect=expect,
    )


def _expect(value: object) -> tuple[Expected, ...] | None:
    if type(value) is not tuple or len(value) > MOST_ITEMS:
        return None
    expected = tuple(one for item in value if (one := _expected(item)) is not None)
    return expected if len(expected) == len(value) else None


def _expected(value: object) -> Expected | None:
    if type(value) is not Expected or plain_name(value.member) is None:
        return None
    texts = [text for text in (value.line, value.unlike) if text is not None]
    if not texts or any(plain_text(text) is None for text in texts):
        return None
    if type(value.reason) is not Reason or value.reason not in _REASONS:
        return None
    return Expected(member=value.member, line=value.line, unlike=value.unlike, reason=value.reason)


def rebuild_dialect(value: object) -> Dialect | None:
    """Return a plugin's dialect made anew, or None for one that is not allowed."""
    if type(value) is not Dialect or type(value.rename_fields) is not tuple:
        return None
    pairs = value.rename_fields
    if len(pairs) > MOST_ITEMS or not all(map(_is_pair_of_names, pairs)):
        return None
    old, new = {name.casefold() for name, _ in pairs}, {name.casefold() for _, name in pairs}
    # None is renamed twice or further, and the model's name is the gateway's own matter.
    if len(old) != len(pairs) or old & new or "model" in old | new:
        return None
    too_long = plain_texts(value.too_long)
    if too_long is None:
        return None
    if any(text.count(number) != 1 for text in too_long for number in ("{tokens}", "{limit}")):
        return None
    if value.cuts_at is not None and (type(value.cuts_at) is not int or value.cuts_at <= 0):
        return None
    return Dialect(rename_fields=pairs, too_long=too_long, cuts_at=value.cuts_at)


def _is_pair_of_names(value: object) -> bool:
    is_pair = type(value) is tuple and len(value) == 2  # noqa: PLR2004 - a pair
    return is_pair and all(plain_name(name) is not None for name in value)  # type: ignore[attr-defined]
