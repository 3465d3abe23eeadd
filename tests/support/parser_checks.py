"""What must hold for any bytes at all: no crash, and no difference from another parser.

What our parsers accept, llhttp (through httptools) reads as the same request; what they refuse
reaches no backend. Used by the property tests and by `make fuzz`.
"""

from __future__ import annotations

import json

import httptools

from companion_core.decisions.verdict import Verdict
from companion_core.gateway.http.body import encode_body, parse_body
from companion_core.gateway.http.chunked import ChunkError, ChunkFramer
from companion_core.gateway.http.head import RequestHead, is_hopeless, parse_head
from companion_core.gateway.http.response_head import parse_response_head
from companion_core.gateway.http.second_parser import head_parser

MODEL = "m"


class Llhttp:
    """One request, as llhttp reads it."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[str, str]] = []
        self.body = b""
        self.headers_complete = False
        self.keep_alive = False
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("ascii").lower(), value.decode("ascii").strip(" \t")))

    def on_headers_complete(self) -> None:
        self.headers_complete = True
        self.keep_alive = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def same_head(one: RequestHead | Verdict, other: RequestHead) -> bool:
    """Compare every attribute."""
    return isinstance(one, RequestHead) and all(
        getattr(one, name) == getattr(other, name) for name in RequestHead.__slots__
    )


def check_head(raw: bytes) -> RequestHead | None:
    """Parse a head with both; return ours, if it is one."""
    is_hopeless(raw)
    head = parse_head(raw)
    if not isinstance(head, RequestHead):
        return None
    for end in range(0, len(raw), 7):
        assert not is_hopeless(raw[:end]), "given up on a head that became one"
    assert same_head(head_parser(second=True)(raw), head), "the second parser differs"
    if head.method not in {"GET", "POST"}:
        return head  # the guard refuses it; llhttp does not know every token
    other = Llhttp()
    try:
        other.parser.feed_data(raw + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        # llhttp stops for an upgrade; the gateway answers as if none had been asked for.
        return head
    assert other.headers_complete
    assert other.parser.get_method().decode() == head.method
    assert other.parser.get_http_version() == "1.1"
    assert other.url.decode().partition("?")[0] == head.path
    names = [name for name, _ in other.fields]
    assert all(names.count(name) == 1 for name in head.headers)
    assert head.headers.items() <= dict(other.fields).items()
    if other.complete:
        assert not head.chunked
        assert not head.content_length
        assert other.keep_alive == head.keep_alive
    else:
        assert head.chunked or head.content_length
    return head


def check_chunks(raw: bytes, step: int) -> None:
    """Follow a chunked body in one piece, in small ones and with llhttp."""
    whole, pieces, skipping = ChunkFramer(collect=True), ChunkFramer(collect=True), ChunkFramer()
    outcomes = []
    for framer, size in ((whole, len(raw) or 1), (pieces, step), (skipping, step)):
        taken = 0
        try:
            for start in range(0, len(raw), size):
                segment = raw[start : start + size]
                took = framer.feed(segment)
                taken += took
                if took < len(segment):
                    break
        except ChunkError:
            taken = -1
        outcomes.append((taken, framer.done))
    assert len(set(outcomes)) == 1, "segments make a difference"
    if not whole.done:
        return
    assert whole.payload == pieces.payload
    other = Llhttp()
    other.parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    other.parser.feed_data(raw[: outcomes[0][0]])
    assert other.complete
    assert other.body == whole.payload


def check_body(raw: bytes) -> None:
    """Parse a body; what is written anew says the same, and is for the one model."""
    fields = parse_body(raw, MODEL)
    if isinstance(fields, Verdict):
        return
    expected = dict(json.loads(raw))
    written = encode_body(fields, "served", frozenset())
    if not isinstance(written, Verdict):
        assert json.loads(written) == expected | {"model": "served"}


def check_response_head(raw: bytes) -> None:
    """Parse the head of an answer; one that is accepted says where its answer ends."""
    head = parse_response_head(raw)
    if head is not None:
        assert not (head.chunked and head.content_length is not None)
        assert not (head.reusable and head.content_length is None and not head.chunked)
