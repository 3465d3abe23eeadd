"""Rules: which bytes of a file are there, as ranges in order that neither touch nor overlap.

Imports nothing of the system; `parse_extents` never raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Extents", "parse_extents"]

# A file whose every second piece is broken has half as many ranges as pieces.
_MOST_RANGES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """Ranges of bytes, each from its first byte to the one after its last.

    Attributes:
        ranges: in order; between two of them at least one byte is missing.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def prefix(cls, count: int) -> Extents:
        """Return the first `count` bytes."""
        return cls(ranges=((0, count),)) if count > 0 else cls()

    @property
    def count(self) -> int:
        """How many bytes are there."""
        return sum(end - start for start, end in self.ranges)

    def is_prefix(self, count: int) -> bool:
        """Tell whether exactly the first `count` bytes are there."""
        return self == Extents.prefix(count)

    def covers(self, start: int, end: int) -> bool:
        """Tell whether every byte of a range is there."""
        return any(first <= start and end <= last for first, last in self.ranges)

    def add(self, start: int, end: int) -> Extents:
        """Return these and the range."""
        if start >= end:
            return self
        before = [each for each in self.ranges if each[1] < start]
        after = [each for each in self.ranges if each[0] > end]
        touched = self.ranges[len(before) : len(self.ranges) - len(after)]
        if touched:
            start, end = min(start, touched[0][0]), max(end, touched[-1][1])
        return Extents(ranges=(*before, (start, end), *after))

    def remove(self, start: int, end: int) -> Extents:
        """Return these without the range."""
        if start >= end:
            return self
        kept: list[tuple[int, int]] = []
        for first, last in self.ranges:
            parts = ((first, min(last, start)), (max(first, end), last))
            kept += [part for part in parts if part[0] < part[1]]
        return Extents(ranges=tuple(kept))

    def missing(self, total: int) -> Iterator[tuple[int, int]]:
        """Yield each range of the first `total` bytes that is not there, in order."""
        at = 0
        for start, end in self.ranges:
            if at < min(start, total):
                yield at, min(start, total)
            at = max(at, end)
        if at < total:
            yield at, total


def parse_extents(value: object, *, total: int) -> Extents | None:
    """Return the ranges that a list of pairs names, or None if it is no such list.

    Args:
        value: as `Extents.ranges` becomes it in JSON.
        total: bytes of the file; no range goes beyond it.
    """
    if type(value) is not list or len(value) > _MOST_RANGES:
        return None
    ranges: list[tuple[int, int]] = []
    least = 0
    for pair in value:
        if type(pair) is not list or len(pair) != 2:  # noqa: PLR2004 - a pair
            return None
        start, end = pair
        if type(start) is not int or type(end) is not int or not least <= start < end <= total:
            return None
        ranges.append((start, end))
        least = end + 1
    return Extents(ranges=tuple(ranges))
