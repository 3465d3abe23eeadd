"""What a backend counts before a request that it might cut."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.gateway.backend_requests import BackendRequests
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.settings import Backend
from companion_core.gateway.token_count import CountedAnswer, counting_fields, may_be_cut
from companion_core.providers import Dialect, TcpChannel

pytestmark = pytest.mark.unit

LONG = "x" * 1000


def test_fewer_bytes_than_tokens_of_context_are_never_counted() -> None:
    assert not may_be_cut(700, 1000)
    assert may_be_cut(745, 1000)  # with what a template may add


def test_all_the_text_of_a_conversation_is_counted_in_one_piece_that_cannot_be_dropped() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"q": {}}}}}
    fields: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "look"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": LONG}}]},
        ],
        "tools": [tool],
        "stream": True,
        "max_tokens": 99,
    }
    (counted,) = counting_fields(fields, 10)
    (message,) = counted["messages"]
    assert counted["max_tokens"] == 1
    for text in ("be brief", "look", '"name": "f"', "properties", '"q"'):
        assert text in message["content"]
    assert LONG not in message["content"]


def test_a_single_message_is_counted_as_it_will_be_read_again() -> None:
    (counted,) = counting_fields({"messages": [{"role": "user", "content": LONG}]}, 10)
    assert counted["messages"] == [{"role": "user", "content": LONG}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": LONG}, [{"prompt": LONG, "max_tokens": 1}]),
        ({"input": LONG}, [{"input": LONG}]),
        ({"input": ["a", LONG, LONG + "y"]}, [{"input": LONG}, {"input": LONG + "y"}]),
        ({"input": [1, 2, 3]}, []),
        ({"input": None}, []),
        ({}, []),
    ],
)
def test_each_text_that_may_be_too_long_is_counted_alone(fields, expected) -> None:
    assert counting_fields(fields, 1000) == expected


def test_a_backend_that_does_not_cut_is_never_asked() -> None:
    def requests(cuts_at: int | None) -> list[bytes]:
        channel = TcpChannel(host="127.0.0.1", port=9)
        backend = Backend(
            channel=channel,
            served_model="its",
            health_path="/h",
            dialect=Dialect(cuts_at=cuts_at),
        )
        fields = {"model": "m", "prompt": LONG}
        return BackendRequests(backend).counts("/v1/completions", fields, 1100)

    assert requests(None) == []
    assert requests(5000) == []
    (asked,) = requests(1000)
    assert asked.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b'"model":"its"' in asked


@pytest.mark.parametrize("chunked", [True, False])
def test_the_end_of_the_answer_says_what_was_read(chunked: bool) -> None:
    text = b'{"data":"' + b"1," * 5000 + b'","usage":{"prompt_tokens":512,"total_tokens":512}}'
    cut = text.index(b"tokens") + 3
    parts = [text[:cut], text[cut:]]
    if chunked:
        parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
    answer = CountedAnswer()
    answer.begin(ResponseHead(200, None, None, chunked=chunked, reusable=True), parts[0])
    for part in parts[1:]:
        answer.feed(part)
    assert (answer.tokens(), answer.failed) == (512, False)
    failed = CountedAnswer()
    failed.begin(ResponseHead(400, None, 2, chunked=False, reusable=True), b"{}")
    assert (failed.tokens(), failed.failed) == (None, True)


@pytest.mark.parametrize(
    ("status", "refused"), [(399, False), (400, True), (499, True), (500, False)]
)
def test_a_failure_of_the_backend_itself_says_nothing_of_the_request(status, refused) -> None:
    answer = CountedAnswer()
    answer.begin(ResponseHead(status, None, 2, chunked=False, reusable=True), b"{}")
    assert (answer.tokens(), answer.failed) == (None, refused)
