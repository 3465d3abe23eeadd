"""Whatever the blocks are: the digest of the whole, and of each piece."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.system.piecewise import PiecewiseHash

pytestmark = pytest.mark.unit


@given(st.binary(max_size=300), st.integers(1, 64), st.lists(st.integers(1, 90), min_size=1))
def test_it_cuts_where_the_pieces_end(data: bytes, piece: int, blocks: list[int]) -> None:
    at, turn = 0, 0
    with PiecewiseHash(piece) as digest:
        while at < len(data):
            count = blocks[turn % len(blocks)]
            digest.update(data[at : at + count])
            at, turn = at + count, turn + 1
    assert digest.size == len(data)
    assert digest.sha256 == hashlib.sha256(data).hexdigest()
    parts = [data[start : start + piece] for start in range(0, len(data), piece)]
    assert digest.pieces == b"".join(hashlib.sha256(part).digest() for part in parts)


def test_a_buffer_may_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("companion_core.system.piecewise._LEAST_BYTES", 1)
    buffer = bytearray(1000)
    with PiecewiseHash(700) as digest:
        for value in (1, 2, 3):
            buffer[:] = bytes([value]) * len(buffer)
            digest.update(memoryview(buffer))
    data = b"".join(bytes([value]) * 1000 for value in (1, 2, 3))
    assert digest.sha256 == hashlib.sha256(data).hexdigest()
    assert digest.pieces[:32] == hashlib.sha256(data[:700]).digest()
