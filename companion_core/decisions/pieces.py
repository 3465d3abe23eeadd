"""Rules: a file may be proved piece by piece, when the digest of each piece was signed.

A whole SHA-256 can be computed on one core only. The digests of its pieces can be computed on
all, and they name the piece that is broken. Imports no I/O; never raises on bad input.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.evidence import Evidence

__all__ = ["DIGEST_BYTES", "PIECE_BYTES", "Pieces", "parse_pieces"]

PIECE_BYTES: Final = 16 * 1024 * 1024  # as this project's own tools cut; others may choose
DIGEST_BYTES: Final = 32  # of a SHA-256
_LEAST_BYTES: Final = 1024 * 1024
_MOST_BYTES: Final = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces(Evidence):
    """The SHA-256 of each piece of a file, in order; made by `parse_pieces` alone.

    Attributes:
        size: bytes of every piece; the last one may be shorter.
        digests: `DIGEST_BYTES` bytes for each.
        total: bytes of the whole file.
    """

    size: int
    digests: bytes
    total: int

    def __len__(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def extent(self, index: int) -> tuple[int, int]:
        """Return where piece `index` begins and how many bytes it has."""
        start = index * self.size
        return start, min(self.size, self.total - start)

    def is_right(self, index: int, digest: bytes) -> bool:
        """Tell whether piece `index` has this SHA-256."""
        start = index * DIGEST_BYTES
        return hmac.compare_digest(self.digests[start : start + DIGEST_BYTES], digest)


def parse_pieces(size: object, digests: object, *, total: int) -> Pieces | None:
    """Return the pieces of a file of `total` bytes, or None if they are not all of it.

    Args:
        size: a power of two from 1 MiB to 1 GiB.
        digests: the SHA-256 of each piece, one after the other.
        total: above 0.
    """
    if type(size) is not int or type(digests) is not bytes:
        return None
    if not _LEAST_BYTES <= size <= _MOST_BYTES or size & (size - 1):
        return None
    if len(digests) != -(-total // size) * DIGEST_BYTES:
        return None
    return Pieces(size=size, digests=digests, total=total)
