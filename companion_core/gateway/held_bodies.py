"""How much memory bodies take before their requests are sent, all together (I-20)."""

from __future__ import annotations

from typing import Protocol

from companion_core.errors import Reason

__all__ = ["BodyHolder", "HeldBodies"]


class BodyHolder(Protocol):
    """A client's connection whose body is counted."""

    def refuse(self, reason: Reason) -> None:
        """Answer with an error, and `release` what is held."""
        ...


class HeldBodies:
    """Counts the bytes of bodies that came in parts, until their requests are sent or refused.

    Beyond the limit the body that has been unfinished for longest makes room: a client that sends
    nothing more keeps nobody else out.

    Attributes:
        held: bytes now.
    """

    __slots__ = ("_limit", "_sizes", "_unfinished", "held")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._limit = limit
        self._sizes: dict[BodyHolder, int] = {}
        self._unfinished: dict[BodyHolder, None] = {}  # oldest first

    def begin(self, holder: BodyHolder) -> None:
        """Count a body that begins."""
        self._sizes[holder] = 0
        self._unfinished[holder] = None

    def grow(self, holder: BodyHolder, size: int) -> bool:
        """Count bytes that came; False if `holder` was refused for them."""
        self._sizes[holder] += size
        self.held += size
        while self.held > self._limit and holder in self._unfinished:
            next(iter(self._unfinished)).refuse(Reason.QUEUE_FULL)
        return holder in self._unfinished

    def finish(self, holder: BodyHolder) -> None:
        """Let a body that is complete keep its room until `release`."""
        self._unfinished.pop(holder, None)

    def release(self, holder: BodyHolder) -> None:
        """Forget a body; harmless when it is forgotten already."""
        self._unfinished.pop(holder, None)
        self.held -= self._sizes.pop(holder, 0)
