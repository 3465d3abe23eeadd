"""Heads of backends: what is kept of them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.gateway.http.response_head import ResponseHead, answer_kind, parse_response_head

pytestmark = pytest.mark.unit


def facts(head: ResponseHead | None) -> dict[str, Any] | None:
    return head and {name: getattr(head, name) for name in ResponseHead.__slots__}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5",
            ResponseHead(200, None, 5, chunked=False, reusable=True),
        ),
        (
            b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked",
            ResponseHead(200, None, None, chunked=True, reusable=True),
        ),
        (
            b"HTTP/1.1 500 x\r\nContent-Length: 0\r\nConnection: Close",
            ResponseHead(500, None, 0, chunked=False, reusable=False),
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 5",
            ResponseHead(200, None, 5, chunked=False, reusable=False),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5, max=100",
            ResponseHead(200, None, 5, chunked=False, reusable=True, keep_alive_seconds=5),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=-1, max=x",
            ResponseHead(200, None, 5, chunked=False, reusable=True),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: Timeout=3\r\nKeep-Alive: max=0",
            ResponseHead(200, None, 5, chunked=False, reusable=False, keep_alive_seconds=3),
        ),
        (b"HTTP/1.1 204 No", ResponseHead(204, None, 0, chunked=False, reusable=True)),
        (b"HTTP/1.1 200 OK", ResponseHead(200, None, None, chunked=False, reusable=False)),
        (b"HTTP/2 200 OK", None),
        (b"HTTP/1.1 20 OK", None),
        (b"HTTP/1.1 200 OK\r\nno colon", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip", None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\xe9", None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b", None),
        (b"HTTP/1.1 200 OK\r\nX: a\nb", None),
    ],
)
def test_a_backends_head_is_read_or_refused(raw: bytes, expected: ResponseHead | None) -> None:
    head = parse_response_head(raw)
    assert facts(head) == facts(expected)


def test_framings_and_statuses_differ_in_kind() -> None:
    pairs = [(status, chunked) for status in (200, 201, 404) for chunked in (False, True)]
    assert len({answer_kind(status, chunked=chunked) for status, chunked in pairs}) == len(pairs)
