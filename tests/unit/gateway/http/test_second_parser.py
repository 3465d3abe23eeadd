"""The second opinion on a head: taken where it is installed, and it can only refuse more."""

from __future__ import annotations

import sys
from typing import Any

import httptools
import pytest

from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.http.head import RequestHead, parse_head
from companion_core.gateway.http.second_parser import head_parser

pytestmark = pytest.mark.unit

PLAIN = (
    b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: 127.0.0.1:1\r\nX-Y: z\r\nContent-Length: 5"
)


def test_it_is_off_without_the_setting_or_without_httptools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert head_parser(second=False) is parse_head
    assert head_parser(second=True) is not parse_head
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert head_parser(second=True) is parse_head


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2",
        b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
        b"BREW /pot HTTP/1.1\r\nHost: a",  # no method of llhttp's; the guard refuses it
    ],
)
def test_what_both_read_alike_is_accepted(raw: bytes) -> None:
    head, alone = head_parser(second=True)(raw), parse_head(raw)
    assert isinstance(head, RequestHead)
    assert isinstance(alone, RequestHead)
    assert (head.method, head.path, head.headers) == (alone.method, alone.path, alone.headers)


def test_what_our_own_refuses_stays_refused() -> None:
    for raw in (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a", b"GET / HTTP/1.0", b"x" * 20_000):
        refusal = head_parser(second=True)(raw)
        assert isinstance(refusal, Verdict)
        assert refusal is parse_head(raw)


class Reader:
    """What llhttp does with `PLAIN`, and one thing otherwise."""

    method = b"POST"
    version = "1.1"
    target = (b"/v1/chat/", b"completions?a=b")
    fields = ((b"Host", b"127.0.0.1:1"), (b"X-Y", b"z"), (b"Content-Length", b"5"))
    complete = True
    error: type[Exception] | None = None

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol

    def feed_data(self, data: bytes) -> None:
        assert data == PLAIN + b"\r\n\r\n"
        for part in self.target:
            self.protocol.on_url(part)
        for name, value in self.fields:
            self.protocol.on_header(name, value)
        if self.complete:
            self.protocol.on_headers_complete()
        if self.error is not None:
            raise self.error

    def get_method(self) -> bytes:
        return self.method

    def get_http_version(self) -> str:
        return self.version


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"error": httptools.HttpParserUpgrade}, True),
        ({"error": httptools.HttpParserError}, False),
        ({"complete": False}, False),
        ({"method": b"GET"}, False),
        ({"version": "1.0"}, False),
        ({"target": (b"/v1/models",)}, False),
        ({"fields": Reader.fields[:1]}, False),
        ({"fields": (*Reader.fields, (b"host", b"127.0.0.1:1"))}, False),
        ({"fields": (*Reader.fields[:2], (b"Content-Length", b"6"))}, False),
        ({"fields": (*Reader.fields, (b"X-Y", b"other"))}, True),  # the gateway does not read it
    ],
)
def test_a_difference_refuses(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], accepted: bool
) -> None:
    monkeypatch.setattr(httptools, "HttpRequestParser", type("Other", (Reader,), change))
    head = head_parser(second=True)(PLAIN)
    if accepted:
        assert isinstance(head, RequestHead)
    else:
        assert isinstance(head, Verdict)
        assert head.reason is Reason.MALFORMED_REQUEST
