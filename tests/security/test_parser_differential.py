"""Our parsers beside llhttp: what both accept they read alike, and nothing makes them raise."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parser_checks import check_body, check_chunks, check_head, check_response_head

pytestmark = pytest.mark.security

TARGETS = st.sampled_from(["/", "/v1/chat/completions", "/a?b=c", "/%2e%2e/x", "//x", "/a;b", "*"])
NAMES = st.sampled_from(
    [
        "Host",
        "hOST",
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
        "Expect",
        "Upgrade",
        "Authorization",
        "Origin",
        "Accept",
        "X-Y",
        "Sec-Fetch-Mode",
        "Content-Type",
        "TE",
    ]
)
VALUES = st.sampled_from(
    [
        "",
        "a",
        "127.0.0.1:1",
        "0",
        "5",
        "05",
        "5, 5",
        "+5",
        "chunked",
        "Chunked",
        "gzip, chunked",
        "close",
        "keep-alive",
        "close, TE",
        "upgrade",
        "h2c",
        "100-continue",
        "\t x \t",
        "a:b",
        '"',
    ]
)
LINES = st.tuples(NAMES, st.sampled_from([":", ": ", ":\t", " :", ""]), VALUES).map("".join)
HEADS = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "get", "PRI", "X"]),
    TARGETS,
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 "]),
    st.lists(LINES, max_size=5),
).map(lambda parts: "\r\n".join([" ".join(parts[:3]), *parts[3]]).encode("latin-1"))


@st.composite
def mutated(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    raw = draw(source)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        removed = draw(st.integers(0, 3))
        added = draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\x00", b":", b"\xff"]))
        raw = raw[:at] + added + raw[at + removed :]
    return raw


@settings(max_examples=500)
@given(mutated(HEADS))
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close")
def test_heads(raw: bytes) -> None:
    check_head(raw)


def chunked(chunks: list[bytes]) -> bytes:
    return b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@settings(max_examples=500)
@given(
    mutated(st.lists(st.binary(min_size=1, max_size=30), max_size=4).map(chunked)),
    st.integers(1, 9),
)
def test_chunked_bodies(raw: bytes, step: int) -> None:
    check_chunks(raw, step)


@given(mutated(st.sampled_from([b'{"model":"m","a":[1.5,{"b":null}]}', b'{"model":"m","A":1}'])))
def test_json_bodies(raw: bytes) -> None:
    check_body(raw)


@given(
    mutated(
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain",
                b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked",
            ]
        )
    )
)
def test_response_heads(raw: bytes) -> None:
    check_response_head(raw)
