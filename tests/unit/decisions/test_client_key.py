"""What is stored of a program's key, and what is refused when it is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from companion_core.decisions.client_key import (
    MAX_KEYS,
    ClientKey,
    is_client_name,
    key_digest,
    keys_document,
    parse_keys,
)

pytestmark = pytest.mark.unit


def key(name: str = "zed", **changes: Any) -> ClientKey:
    known: dict[str, Any] = {
        "name": name,
        "digest": key_digest(name),
        "created": "2026-12-01T00:00:00Z",
        "models": None,
        "requests_per_minute": None,
        "delegate": False,
    }
    return ClientKey(**{**known, **changes})


def stored(*keys: ClientKey) -> bytes:
    return json.dumps(keys_document(keys)).encode()


def test_keys_are_read_as_they_were_stored() -> None:
    keys = (
        key(),
        key("llm", models=("a/b:Q4", "c"), requests_per_minute=10, delegate=True),
    )
    assert parse_keys(stored(*keys)) == keys
    assert parse_keys(stored()) == ()


def test_a_key_is_known_by_its_digest_alone() -> None:
    one = key()
    assert one.is_of(key_digest("zed"))
    assert not one.is_of(key_digest("zed "))
    assert b"zed" not in stored(key(name="other", digest=key_digest("zed")))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"{}",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": [], "more": 1}',
        b'{"keys": [{}]}',
        stored(key(), key()),
        stored(key(), key("llm", digest=key_digest("zed"))),
        stored(*(key(f"k{number}") for number in range(MAX_KEYS + 1))),
    ],
)
def test_anything_else_is_no_list_of_keys(raw: object) -> None:
    assert parse_keys(raw) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Zed"},
        {"name": ""},
        {"name": "a" * 33},
        {"name": 'z"'},
        {"digest": "0"},
        {"digest": "G" * 64},
        {"created": "yesterday"},
        {"models": ()},
        {"models": ("",)},
        {"models": (7,)},
        {"models": ("x",) * 65},
        {"requests_per_minute": 0},
        {"requests_per_minute": True},
        {"requests_per_minute": 10**7},
        {"delegate": 1},
    ],
)
def test_one_malformed_key_spoils_the_list(changes: dict[str, Any]) -> None:
    assert parse_keys(stored(key("good"), key(**changes))) is None


def test_a_name_is_short_and_plain() -> None:
    assert all(map(is_client_name, ("zed", "a", "open-webui_2", "a" * 32)))
    assert not any(map(is_client_name, ("", "-a", "A", "a b", "a" * 33, None, 7)))
