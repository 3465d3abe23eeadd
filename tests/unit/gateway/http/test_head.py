"""The head parser: total, exact about what is plain, and closed to what is ambiguous."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.http.head import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_WAIT_SECONDS,
    RequestHead,
    is_hopeless,
    parse_head,
    preferred_wait,
)

pytestmark = pytest.mark.unit

PLAIN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Length: 5"
# The grammar of RFC 9112, written a second time and differently, for whole heads.
FIELD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*"
GRAMMAR = re.compile(
    rb"[A-Z]+ /[\x21\x24-\x7e]*(\?[\x21\x22\x24-\x7e]*)? HTTP/1\.1(\r\n" + FIELD + rb")*"
)


def parsed(raw: bytes) -> RequestHead:
    head = parse_head(raw)
    assert isinstance(head, RequestHead)
    return head


def test_reads_a_plain_head() -> None:
    head = parsed(PLAIN + b"\r\nCONNECTION: Close\r\nAccept: */*\r\nsec-fetch-Mode:\tcors \t")
    assert (head.method, head.path) == ("POST", "/v1/chat/completions")
    assert (head.content_length, head.chunked, head.keep_alive) == (5, False, False)
    assert head.headers == {
        "host": "127.0.0.1:1",
        "content-length": "5",
        "connection": "Close",
        "sec-fetch-mode": "cors",
    }


def test_cuts_the_query_off() -> None:
    assert parsed(b"GET /v1/models?token=a/b?c HTTP/1.1").path == "/v1/models"


@given(st.binary(max_size=400))
@example(b"")
@example(b"GET / HTTP/1.1\r\nHost : a")
@example(b"GET / HTTP/1.1\r\n folded: a")
def test_is_total_and_accepts_only_the_grammar(raw: bytes) -> None:
    head = parse_head(raw)
    if isinstance(head, RequestHead):
        assert GRAMMAR.fullmatch(raw)
    else:
        assert head.reason in {Reason.MALFORMED_REQUEST, Reason.HEAD_TOO_LARGE}


BYTES = st.integers(0, 255).map(lambda number: bytes([number]))


@given(st.integers(0, len(PLAIN)), st.integers(0, 3), BYTES | st.just(b"\r\n") | st.just(b""))
def test_a_mutated_head_is_read_exactly_or_refused(at: int, removed: int, added: bytes) -> None:
    raw = PLAIN[:at] + added + PLAIN[at + removed :]
    head = parse_head(raw)
    if isinstance(head, RequestHead):
        assert GRAMMAR.fullmatch(raw)
        length = head.headers.get("content-length")
        assert head.content_length == (None if length is None else int(length, 10))
        assert raw.lower().count(b"\r\nhost:") <= 1


NAMES = st.sampled_from(["Host", "hOST", "Content-Length", "Transfer-Encoding", "Origin", "X-Y"])


@given(st.lists(st.tuples(NAMES, st.sampled_from(["a", "5", "chunked", "05"])), max_size=4))
def test_what_is_read_occurs_once_and_has_one_length(fields: list[tuple[str, str]]) -> None:
    raw = "\r\n".join(["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in fields)])
    head = parse_head(raw.encode())
    names = [name.lower() for name, _ in fields if name != "X-Y"]
    if isinstance(head, RequestHead):
        assert len(set(names)) == len(names)
        assert not {"content-length", "transfer-encoding"} <= set(names)
        assert dict(zip(names, (v for n, v in fields if n != "X-Y"), strict=True)) == head.headers


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: +5",
        b"Content-Length: 5_0",
        b"Content-Length: 5, 5",
        b"Content-Length: 0x5",
        b"Content-Length:",
        b"Content-Length: 1234567890123456",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Host: a\r\nHost: a",
        b"X: a\x00b",
        b"X: a\rb",
        b"X: a\nb",
        b"X: \xe9",
        b"X\x7f: a",
        b": a",
        b"no colon",
        b"X: a\r\n b",
        b"",
    ],
)
def test_refuses_what_parsers_differ_about(line: bytes) -> None:
    head = parse_head(b"GET / HTTP/1.1\r\n" + line)
    assert isinstance(head, Verdict)
    assert head.reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.0",
        b"GET / HTTP/1.10",
        b"GET / http/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"get / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET http://a/ HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1",
        b"GET /# HTTP/1.1",
        b"GET /\\ HTTP/1.1",
        b"GET /",
        b"",
    ],
)
def test_refuses_other_request_lines(line: bytes) -> None:
    assert isinstance(parse_head(line), Verdict)


def test_refuses_oversized_heads() -> None:
    for raw in (
        b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1" + b"\r\nX: a" * (MAX_FIELDS + 1),
        b"GET / HTTP/1.1\r\n" + b"X" * 200 + b": a",
    ):
        head = parse_head(raw)
        assert isinstance(head, Verdict)
        assert head.reason is Reason.HEAD_TOO_LARGE
    assert isinstance(parse_head(b"GET / HTTP/1.1" + b"\r\nX: a" * MAX_FIELDS), RequestHead)


@given(st.integers(0, len(PLAIN)))
def test_no_beginning_of_a_plain_head_is_hopeless(end: int) -> None:
    assert not is_hopeless(PLAIN[:end])


@pytest.mark.parametrize("raw", [b"GET /\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\r", b"\xff"])
def test_what_can_never_become_a_head_is_hopeless(raw: bytes) -> None:
    assert is_hopeless(raw)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (b"", 0),
        (b"\r\nPrefer: wait=30", 30),
        (b"\r\npREFER:WAIT = 30 ", 30),
        (b'\r\nPrefer: respond-async, wait="7"; foo=wait', 7),
        (b"\r\nPrefer: foo\r\nHost: a\r\nPrefer: wait=5, wait=9", 5),  # the first counts
        (b"\r\nPrefer: wait=0000030", 30),
        (b"\r\nPrefer: wait=" + b"9" * 5000, MAX_WAIT_SECONDS),
        (b"\r\nPrefer: wait", 0),
        (b"\r\nPrefer: wait=", 0),
        (b"\r\nPrefer: wait=-1", 0),
        (b"\r\nPrefer: wait=1.5", 0),
        (b"\r\nPrefer: foo; wait=5", 0),  # a parameter of another preference
        (b"\r\nPrefers: wait=5", 0),
        (b"\r\nX: prefer: wait=5", 0),
    ],
)
def test_how_long_a_client_would_rather_wait(fields: bytes, seconds: int) -> None:
    assert preferred_wait(b"GET /prefer:wait=5 HTTP/1.1" + fields) == seconds
