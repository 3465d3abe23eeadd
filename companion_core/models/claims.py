"""Which connection brings which missing bytes of one file, and the one place that writes them.

A claim is a range that one connection is bringing. A connection that is done takes the next gap
that nobody claims, or the second half of what another still has before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from companion_core.errors import Reason, Refused
from companion_core.models.partial import Partial

__all__ = ["Claim", "Claims"]

# After so many bytes the free space of the disk is looked at again.
_WATCHED_BYTES: Final = 64 << 20


@dataclass(slots=True, eq=False)
class Claim:
    """Bytes from `at` on, to the one before `end`; both move while they are brought."""

    at: int
    end: int

    @property
    def count(self) -> int:
        """How many bytes are missing of it."""
        return self.end - self.at


class Claims:
    """The claims on one file; every method may be called from any thread.

    Args:
        partial: written to by nobody else.
        advance: told how many bytes of the file are there, in order.
        watch: told now and then how many are missing; raises if the disk has no room for them.
        least: bytes below which a claim is not divided.
    """

    def __init__(
        self,
        partial: Partial,
        *,
        advance: Callable[[int], object],
        watch: Callable[[int], object],
        least: int,
    ) -> None:
        self.partial = partial
        self._advance = advance
        self._watch = watch
        self._least = least
        self._taken: list[Claim] = []
        self._unwatched = 0
        self._lock = threading.RLock()

    def take(self) -> Claim | None:
        """Claim the first gap that nobody has, or half of the longest claim; None for neither."""
        with self._lock:
            have = self.partial.have
            for claim in self._taken:
                have = have.add(claim.at, claim.end)
            gap = next(have.missing(self.partial.spec.size), None)
            return self.divide() if gap is None else self._add(Claim(*gap))

    def divide(self) -> Claim | None:
        """Claim the second half of the longest claim; None if it is too short for that."""
        with self._lock:
            longest = max(self._taken, key=lambda claim: claim.count, default=None)
            if longest is None or longest.count < 2 * self._least:
                return None
            end, longest.end = longest.end, longest.at + longest.count // 2
            return self._add(Claim(longest.end, end))

    def give_back(self, claim: Claim) -> None:
        """Claim the bytes no longer; what is missing of them is a gap again."""
        with self._lock:
            self._taken.remove(claim)

    def begin(self, claim: Claim, url: str, validator: str | None) -> None:
        """Take the whole file from `url`, by the one claim that there is."""
        with self._lock:
            self.partial.begin(url, validator)
            claim.at, claim.end = 0, self.partial.spec.size

    def go_on(self, url: str, validator: str | None) -> None:
        """Take what is missing from `url`; see `Partial.go_on`."""
        with self._lock:
            self.partial.go_on(url, validator)

    def put(self, claim: Claim, block: memoryview) -> bool:
        """Write the next bytes of a claim; False when it wants no more of them.

        Raises:
            Refused: `size_mismatch`: there are bytes after the last one of the file.
            EnvironmentUnavailable: `disk_unavailable`.
            OSError: the disk.
        """
        with self._lock:
            partial = self.partial
            # Counted before it is written: never more on the disk than was signed for.
            if len(block) > claim.count and claim.end == partial.spec.size:
                raise Refused(Reason.SIZE_MISMATCH)
            block = block[: claim.count]
            partial.write(claim.at, block)
            claim.at += len(block)
            self._unwatched += len(block)
            if self._unwatched >= _WATCHED_BYTES:
                self._unwatched = 0
                self._watch(partial.spec.size - partial.received)
            self._advance(partial.received)
            # The end of the file is read to its end, to see that nothing follows.
            return claim.at < claim.end or claim.end == partial.spec.size

    def _add(self, claim: Claim) -> Claim:
        self._taken.append(claim)
        return claim
