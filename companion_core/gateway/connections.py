"""The clients' connections: how many there may be, and which makes room when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, Protocol

__all__ = ["ConnectionTable", "OpenConnection"]

# A place is found among so many, so that a flood of connections costs each newcomer little.
LOOKED_AT: Final = 32


class OpenConnection(Protocol):
    """What the table and the gateway's sweep need of a connection.

    Attributes:
        deadline: on the gateway's clock, when the sweep calls `deadline_passed`.
    """

    deadline: float

    def deadline_passed(self) -> None:
        """Give up on what takes too long."""
        ...

    def look_at_silence(self, now: float) -> None:
        """Write a comment into a stream that was silent for too long."""
        ...

    def waits_to_be_read(self) -> bool:
        """Return whether its peer has sent what nobody has looked at yet."""
        ...

    def turn_away(self) -> None:
        """Refuse for want of room."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def leave_if_revoked(self) -> None:
        """Close at once if the key that it showed opens nothing any more."""
        ...


class ConnectionTable:
    """Every open connection; iterating it yields those that were turned away too."""

    __slots__ = ("_all_closed", "_counted", "_leaving", "_limit", "_strangers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counted: set[OpenConnection] = set()
        # They have lost their place, and their last bytes may wait for a peer that never reads.
        self._leaving: set[OpenConnection] = set()
        self._strangers: dict[OpenConnection, None] = {}  # never showed the token; oldest first
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __len__(self) -> int:
        return len(self._counted) + len(self._leaving)

    def __iter__(self) -> Iterator[OpenConnection]:
        return chain(self._counted, self._leaving)

    def add(self, connection: OpenConnection) -> bool:
        """Note a connection; False when there are too many.

        A new one takes the place of the oldest that never showed the token: a program that
        holds connections open cannot keep the owner out. One whose request waits to be read keeps
        its place as long as another can go: it may be about to show the token.
        """
        if len(self._counted) >= self._limit and self._strangers:
            leaving = self._least_heard()
            del self._strangers[leaving]
            self._counted.discard(leaving)
            self._leaving.add(leaving)
            leaving.turn_away()
        full = len(self._counted) >= self._limit
        self._counted.add(connection)
        self._strangers[connection] = None
        self._all_closed.clear()
        return not full

    def _least_heard(self) -> OpenConnection:
        for connection in islice(self._strangers, LOOKED_AT):
            if not connection.waits_to_be_read():
                return connection
        return next(iter(self._strangers))

    def trust(self, connection: OpenConnection) -> None:
        """Note that a connection has shown the token."""
        self._strangers.pop(connection, None)

    def discard(self, connection: OpenConnection) -> None:
        """Forget a connection; harmless when it is forgotten already."""
        self._counted.discard(connection)
        self._leaving.discard(connection)
        self._strangers.pop(connection, None)
        if not self:
            self._all_closed.set()

    async def abort_all(self) -> None:
        """End every connection, unanswered requests included, and wait until they are gone."""
        for connection in list(self):
            connection.abort()
        await self._all_closed.wait()
