"""The clients' connections: how many there may be, and who makes room when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion_core.gateway.client import ClientConnection

__all__ = ["ConnectionTable"]


class ConnectionTable:
    """Every open connection; iterate it to see them, those that were turned away too."""

    __slots__ = ("_all_closed", "_counted", "_leaving", "_limit", "_strangers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counted: set[ClientConnection] = set()
        # They have lost their place, and their last bytes may wait for a peer that never reads.
        self._leaving: set[ClientConnection] = set()
        self._strangers: dict[ClientConnection, None] = {}  # never showed the token; oldest first
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __len__(self) -> int:
        return len(self._counted) + len(self._leaving)

    def __iter__(self) -> Iterator[ClientConnection]:
        return chain(self._counted, self._leaving)

    def add(self, connection: ClientConnection) -> bool:
        """Note a connection; False when there are too many.

        A new one takes the place of the oldest that never showed the token: whoever holds
        connections open cannot keep the owner out.
        """
        if len(self._counted) >= self._limit and self._strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            self._counted.discard(oldest)
            self._leaving.add(oldest)
            oldest.turn_away()
        full = len(self._counted) >= self._limit
        self._counted.add(connection)
        self._strangers[connection] = None
        self._all_closed.clear()
        return not full

    def trust(self, connection: ClientConnection) -> None:
        """Note that a connection has shown the token."""
        self._strangers.pop(connection, None)

    def discard(self, connection: ClientConnection) -> None:
        """Forget a connection; harmless when it is forgotten already."""
        self._counted.discard(connection)
        self._leaving.discard(connection)
        self._strangers.pop(connection, None)
        if not self:
            self._all_closed.set()

    async def abort_all(self) -> None:
        """End every connection, unanswered requests included, and wait until they are gone."""
        for connection in list(self):
            connection.transport.abort()
        await self._all_closed.wait()
