"""The chunked framer: the same whatever the segments, and closed to what parsers differ about."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.gateway.http.chunked import ChunkError, ChunkFramer

pytestmark = pytest.mark.unit


def encode(chunks: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return body + b"0\r\n\r\n"


def feed(segments: list[bytes]) -> tuple[ChunkFramer, int]:
    framer, taken = ChunkFramer(collect=True), 0
    for segment in segments:
        taken += framer.feed(segment)
    return framer, taken


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 300), max_size=12),
    st.binary(max_size=10),
)
def test_segments_make_no_difference(chunks: list[bytes], cuts: list[int], rest: bytes) -> None:
    wire = encode(chunks) + rest
    edges = [0, *sorted({min(cut, len(wire)) for cut in cuts}), len(wire)]
    segments = [wire[start:end] for start, end in itertools.pairwise(edges)]
    framer, taken = feed(segments)
    assert framer.done
    assert taken == len(wire) - len(rest)
    assert framer.payload == b"".join(chunks)
    assert framer.size == sum(map(len, chunks))


@given(st.binary(max_size=60), st.integers(1, 8))
def test_is_total(raw: bytes, step: int) -> None:
    try:
        feed([raw[start : start + step] for start in range(0, len(raw), step)])
    except ChunkError:
        return


@pytest.mark.parametrize(
    "raw",
    [
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"5;a=b\r\nhello\r\n",
        b"10000000000000005\r\n",
        b"5\nhello\n0\n\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"z\r\n",
    ],
)
def test_refuses_what_parsers_differ_about(raw: bytes) -> None:
    for step in (1, len(raw)):
        with pytest.raises(ChunkError):
            feed([raw[start : start + step] for start in range(0, len(raw), step)])


def test_an_endless_size_line_is_not_kept() -> None:
    framer = ChunkFramer()
    for _ in range(10):
        framer.feed(b"1")
    with pytest.raises(ChunkError):
        framer.feed(b"1")
