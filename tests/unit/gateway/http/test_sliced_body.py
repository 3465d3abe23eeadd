"""A large body is read in slices, to the same result as a small one is read at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.http import sliced_body
from companion_core.gateway.http.body import LARGE_BODY, encode_body, parse_body, parse_large_body

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# What parsers differ about, in any order: most of it is no JSON at all.
PARTS = st.sampled_from(
    [
        *'{}[]":, \t\r\n0123-+.eE',
        *(
            '"model":"m"',
            "true",
            "false",
            "null",
            "NaN",
            "Infinity",
            "-0",
            "1e999",
            "01",
            "1.",
            ".5",
        ),
        *(
            '"\\ud83d\\ude00"',
            '"\\ud83d"',
            '"\\ude00\\ud83d"',
            '"\\u00e9"',
            '"\\x"',
            '"\\u12"',
            '"\\',
        ),
        *(
            '"a":1',
            '"a":',
            '{"b":[',
            "]}",
            '"\n"',
            '"\x7f"',
            "\x0b",
            "\xa0",
            "\u2028",
            "\ufeff",
            "é",
        ),
    ]
)


def read_large(raw: bytes) -> dict[str, Any] | Verdict:
    """Read in slices."""
    reading = parse_large_body(raw, "m")
    while True:
        try:
            next(reading)
        except StopIteration as ended:
            return ended.value


def same(raw: bytes) -> dict[str, Any] | Verdict:
    """Both readers say the same about a body, and of what they read the same is written."""
    at_once, in_slices = parse_body(raw, "m"), read_large(raw)
    if isinstance(at_once, Verdict) or isinstance(in_slices, Verdict):
        assert at_once == in_slices
        return in_slices
    assert json.dumps(at_once) == json.dumps(in_slices)  # the order, and NaN is not itself
    assert encode_body(at_once, "s", frozenset()) == encode_body(in_slices, "s", frozenset())
    return in_slices


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.booleans())
def test_what_is_json_is_read_the_same(fields: dict[str, Any], plain: bool) -> None:
    same(json.dumps({**fields, "model": "m"}, ensure_ascii=plain, indent=1).encode(errors="ignore"))


@settings(max_examples=500)
@given(st.lists(PARTS, max_size=12).map("".join))
@example("[1,]")
@example("1,}")
@example('{"a":1,"\\u0061":2}')
def test_what_may_be_no_json_is_judged_the_same(inner: str) -> None:
    for text in (inner, '{"model":"m","x":' + inner + "}", '{"model":"m"' + inner):
        same(text.encode())


@given(st.binary())
def test_bytes_are_judged_the_same(raw: bytes) -> None:
    same(raw)
    same(b'{"model":"m","x":"' + raw + b'"}')


@given(
    st.text(
        alphabet=st.sampled_from(["a", "é", "\U0001f600", "\ud83d", "\ude00", "\n", '"', "\\"]),
        max_size=300,
    )
)
@example("\U0001f600" * 400)
@example("\ud83d" * 400)
def test_a_text_of_many_pieces_is_read_and_written_the_same(text: str) -> None:
    for _ in range(2):
        body = json.dumps({"model": "m", "x": text + "z", "y": {"x": [text]}, text: 1}).encode()
        fields = same(body)
        assert isinstance(fields, dict)
        text = text * 40


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_the_depth_has_a_bound_and_it_is_the_same_one(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    for depth, ok in ((199, True), (200, False), (100_000, False)):
        inner = opening * (depth - 1) + ("[]" if opening == "[" else "{}") + closing * (depth - 1)
        answer = same(f'{{"model":"m","x":{inner}}}'.encode())
        assert isinstance(answer, dict) is ok, depth


@pytest.mark.parametrize(
    "items",
    ["[]," * 60_000, "{}," * 60_000, '"",' * 60_000, "1," * 160_000, '{"a":1},' * 30_000],
    ids=["lists", "objects", "texts", "numbers", "members"],
)
def test_the_number_of_items_has_a_bound(items: str) -> None:
    raw = f'{{"model":"m","x":[{items[:-1]}]}}'.encode()
    assert len(raw) > LARGE_BODY
    answer = read_large(raw)
    assert isinstance(answer, Verdict)
    assert answer.reason is Reason.BODY_TOO_LARGE
    names = ",".join(f'"{number}":1' for number in range(800_000))
    answer = read_large(f'{{"model":"m",{names}}}'.encode())
    assert isinstance(answer, Verdict)
    assert answer.reason is Reason.BODY_TOO_LARGE


def test_a_small_body_has_no_room_for_as_many() -> None:
    assert LARGE_BODY / len("[],") < sliced_body.MAX_COSTLY_ITEMS
    assert LARGE_BODY / len("1,") < sliced_body.MAX_ITEMS


def test_what_was_replaced_or_dropped_is_not_written() -> None:
    long = "\n" * 100_000
    fields = read_large(json.dumps({"model": "m", "a": [long], "b": long, "c": long}).encode())
    assert isinstance(fields, dict)
    fields["a"][0] = "other"
    fields["b"] = 1
    assert encode_body(fields, "s", {"c"}) == b'{"model":"s","a":["other"],"b":1}'
