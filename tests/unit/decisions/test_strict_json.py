from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.strict_json import MALFORMED, decode_base64, parse_json

pytestmark = pytest.mark.unit

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**14), 10**14) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary() | st.text() | st.none())
def test_total(raw: object) -> None:
    parse_json(raw, limit=1000)


@given(values)
def test_what_is_json_is_read(value: object) -> None:
    raw = json.dumps(value).encode()
    assert parse_json(raw, limit=len(raw)) == value
    assert parse_json(raw, limit=len(raw) - 1) is MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b"1.0",
        b"1e3",
        b"NaN",
        b"-Infinity",
        b'"\xff"',
        b'\xef\xbb\xbf{"a":1}',
        b'"\\ud800"',
        b'{"\\udc00":1}',
        b"[" * 17 + b"]" * 17,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"12345678901234567",
        b"1" * 5000,
        b"{} {}",
        b"",
    ],
)
def test_a_second_reading_is_refused(raw: bytes) -> None:
    assert parse_json(raw, limit=1_000_000) is MALFORMED


def test_brackets_in_texts_are_no_nesting() -> None:
    raw = json.dumps("[" * 50 + '\\"{').encode()
    assert parse_json(raw, limit=1000) == "[" * 50 + '\\"{'
    assert parse_json(b"[" * 16 + b"]" * 16, limit=1000) is not MALFORMED


@given(st.binary())
def test_base64_round_trip(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["YQ", "YQ=", "YR==", "YQ==\n", " YQ==", "Y-_=", "é", 5, None])
def test_base64_has_one_spelling(text: object) -> None:
    assert decode_base64(text) is None
