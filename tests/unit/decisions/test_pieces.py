"""The digests of a file's pieces: all of the file, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.pieces import DIGEST_BYTES, PIECE_BYTES, Pieces, parse_pieces

pytestmark = pytest.mark.unit

MEBIBYTE = 2**20
ONE = b"\1" * DIGEST_BYTES
TWO = b"\2" * DIGEST_BYTES


def pieces_of(total: int, size: int = MEBIBYTE) -> Pieces:
    pieces = parse_pieces(size, ONE * -(-total // size), total=total)
    assert pieces is not None
    return pieces


@given(st.integers(1, 2**32), st.sampled_from([MEBIBYTE, PIECE_BYTES, 2**30]))
def test_the_extents_are_the_whole_file_once(total: int, size: int) -> None:
    pieces = pieces_of(total, size)
    position = 0
    for index in range(len(pieces)):
        start, count = pieces.extent(index)
        assert (start, 0 < count <= size) == (position, True)
        position += count
    assert position == total


def test_a_piece_is_compared_with_its_own_digest() -> None:
    pieces = parse_pieces(MEBIBYTE, ONE + TWO, total=MEBIBYTE + 1)
    assert pieces is not None
    assert (pieces.is_right(0, ONE), pieces.is_right(1, TWO)) == (True, True)
    assert (pieces.is_right(0, TWO), pieces.is_right(1, ONE)) == (False, False)
    assert (pieces.is_right(2, ONE), pieces.is_right(0, b"")) == (False, False)


@pytest.mark.parametrize("size", [0, 1, -MEBIBYTE, MEBIBYTE * 3, 2**31, 1.0 * MEBIBYTE, True, None])
def test_a_size_that_nobody_cuts(size: object) -> None:
    assert parse_pieces(size, ONE, total=5) is None


@pytest.mark.parametrize("digests", [b"", ONE + TWO, ONE[:-1], bytearray(ONE), "1" * 32, None])
def test_digests_that_are_not_one_for_each_piece(digests: object) -> None:
    assert parse_pieces(MEBIBYTE, digests, total=5) is None


def test_pieces_are_made_by_their_rule_alone() -> None:
    with pytest.raises(TypeError):
        Pieces(size=MEBIBYTE, digests=ONE, total=1)
