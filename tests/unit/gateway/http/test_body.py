"""Request bodies: one JSON object, each key once, for the one model; written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.http import body
from companion_core.gateway.http.body import encode_body, is_json, parse_body, parse_large_body

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_only_the_model_changes_and_the_dropped_fields_go(fields: dict[str, object]) -> None:
    body = {"cache_file": "/etc/passwd", **fields, "model": "m"}
    parsed = parse_body(json.dumps(body).encode(), "m")
    assert isinstance(parsed, dict)
    written = encode_body(parsed, "served", {"cache_file"})
    assert isinstance(written, bytes)
    body.pop("cache_file")
    assert json.loads(written) == body | {"model": "served"}


@given(st.binary())
def test_is_total(raw: bytes) -> None:
    assert isinstance(parse_body(raw, "m"), Verdict | dict)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'"model"',
        b'{"model":"m"} x',
        b'{"model":"m","model":"m"}',
        b'{"model":"m","a":{"b":1,"b":2}}',
        b'{"model":"m","MODEL":"x"}',
        '{"model":"m","a\u017f":1,"aS":2}'.encode(),
        b'{"model":"m","a":NaN}',
        b'{"model":"m","a":-Infinity}',
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m","a":"\xff"}',
        b'{"model":"m","a":"\n"}',
        b'{"model":"m","a":' + b"[" * 100_000,
        b'{"model":"m","a":' + b"1" * 5000 + b"}",
    ],
)
def test_refuses_what_is_not_one_plain_object(raw: bytes) -> None:
    refusal = parse_body(raw, "m")
    assert isinstance(refusal, Verdict)
    assert refusal.reason is Reason.MALFORMED_BODY


@pytest.mark.parametrize("raw", [b"{}", b'{"model":"M"}', b'{"model":null}', b'{"model":["m"]}'])
def test_refuses_another_model(raw: bytes) -> None:
    refusal = parse_body(raw, "m")
    assert isinstance(refusal, Verdict)
    assert refusal.reason is Reason.MODEL_NOT_SERVED


def test_a_number_without_a_json_form_is_refused_when_written() -> None:
    parsed = parse_body(b'{"model":"m","a":1e999}', "m")
    assert isinstance(parsed, dict)
    refusal = encode_body(parsed, "s", frozenset())
    assert isinstance(refusal, Verdict)
    assert refusal.reason is Reason.MALFORMED_BODY


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; charset=utf-16", False),
        ("application/json5", False),
        ('application/json; charset="utf-8', False),
        ("text/plain", False),
        ("text/plain, application/json", False),
        ("", False),
        (None, False),
    ],
)
def test_media_types(kind: str | None, expected: bool) -> None:
    assert is_json(kind) is expected


def test_the_usual_names_differ_in_more_than_case() -> None:
    usual = body._USUAL_NAMES
    assert len({name.casefold() for name in usual}) == len(usual)
    doubled = json.dumps({"model": "m", "Stream": True, "stream": False}).encode()
    refused = body.parse_body(doubled, "m")
    assert isinstance(refused, Verdict)
    assert refused.reason is Reason.MALFORMED_BODY


def whole_large_body(*arguments: Any) -> Any:
    work = parse_large_body(*arguments)
    while True:
        try:
            next(work)
        except StopIteration as ended:
            return ended.value


@pytest.mark.parametrize("read", [parse_body, whole_large_body])
def test_an_alias_names_the_model(read: Any) -> None:
    aliases = frozenset({"gpt-4o-mini"})
    assert read(b'{"model":"gpt-4o-mini"}', "m", aliases) == {"model": "m"}
    assert read(b'{"model":"m"}', "m", aliases) == {"model": "m"}
    for other in (b'"gpt"', b"null", b"7", b'["gpt-4o-mini"]', b'{"a":1}'):
        refused = read(b'{"model":%b}' % other, "m", aliases)
        assert refused.reason is Reason.MODEL_NOT_SERVED
