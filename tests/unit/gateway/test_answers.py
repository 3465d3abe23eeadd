"""What is translated in a backend's answer, and how much of it is held back meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.gateway.answers import MOST_COLLECTED, AnswerRules, Renamer
from companion_core.gateway.http.response_head import ResponseHead

pytestmark = pytest.mark.unit

SERVED = "companion/model:latest"
NAME = b'"model":"companion/model:latest"'


def head(status: int = 200, length: int | None = None, *, chunked: bool = False) -> ResponseHead:
    return ResponseHead(status, "application/json", length, chunked=chunked, reusable=True)


@given(
    st.lists(st.sampled_from([NAME, b'"model": "companion/model:latest"', b'"model":"co', b"x"]))
)
def test_parts_of_any_size_are_translated_like_the_whole(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    whole = Renamer(SERVED, "m").whole(text)
    assert SERVED.encode() not in whole
    assert whole == text.replace(SERVED.encode(), b"m")
    for size in (1, 2, 7, 40):
        renamer = Renamer(SERVED, "m")
        parts = [renamer.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert b"".join([*parts, renamer.finish()]) == whole


def test_nothing_is_held_back_at_the_end_of_an_event() -> None:
    event = b'data: {"id":"1","model":"companion/model:latest","n":"model"}\n\n'
    assert Renamer(SERVED, "m").feed(event) == event.replace(SERVED.encode(), b"m")


def test_only_errors_are_edited_where_both_use_one_name() -> None:
    rules = AnswerRules("m", "m", ("{tokens} of {limit}",))
    assert not rules.every_answer
    assert rules.editor(head(200, 9)) is None
    assert rules.editor(head(500, 9)) is not None


@pytest.mark.parametrize("chunked", [True, False])
def test_a_long_answer_is_passed_on_as_it_comes(chunked: bool) -> None:
    data = b'{"d":"' + b"x" * MOST_COLLECTED + b'",' + NAME + b"}"
    raw = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if chunked else data
    length = None if chunked else len(data)
    editor = AnswerRules(SERVED, "m").editor(head(200, length, chunked=chunked))
    assert editor is not None
    assert editor.head is not None
    assert editor.head.chunked
    wire = b"".join(editor.feed(raw[at : at + 65536]) for at in range(0, len(raw), 65536))
    rest_head, rest = editor.finish()
    assert rest_head is None
    wire += rest
    payload = b""
    while wire:
        size, _, after = wire.partition(b"\r\n")
        payload, wire = payload + after[: int(size, 16)], after[int(size, 16) + 2 :]
    assert payload == data.replace(SERVED.encode(), b"m")


def test_an_answer_that_ends_with_its_connection_has_no_frame() -> None:
    editor = AnswerRules(SERVED, "m").editor(head())
    assert editor is not None
    assert editor.feed(b"{" + NAME[:9]) == b"{"
    assert editor.feed(NAME[9:] + b'"model') == b'"model":"m"'
    assert editor.finish() == (None, b'"model')


def test_an_error_that_does_not_end_is_not_collected_for_ever() -> None:
    editor = AnswerRules(SERVED, "m").editor(head(500))
    assert editor is not None
    with pytest.raises(OverflowError):
        editor.feed(b"x" * (MOST_COLLECTED + 1))
