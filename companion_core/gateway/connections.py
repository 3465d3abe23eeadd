"""The clients' connections: how many there may be, and who makes room when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion_core.gateway.client import ClientConnection

__all__ = ["ConnectionTable"]


class ConnectionTable:
    """Every open connection; iterate it to see them."""

    __slots__ = ("_all", "_all_closed", "_limit", "_strangers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: set[ClientConnection] = set()
        self._strangers: dict[ClientConnection, None] = {}  # never showed the token; oldest first
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(self._all)

    def add(self, connection: ClientConnection) -> bool:
        """Note a connection; False when there are too many.

        A new one takes the place of the oldest that never showed the token: whoever holds
        connections open cannot keep the owner out.
        """
        if len(self._all) >= self._limit and self._strangers:
            oldest = next(iter(self._strangers))
            self.discard(oldest)
            oldest.turn_away()
        full = len(self._all) >= self._limit
        self._all.add(connection)
        self._strangers[connection] = None
        self._all_closed.clear()
        return not full

    def trust(self, connection: ClientConnection) -> None:
        """Note that a connection has shown the token."""
        self._strangers.pop(connection, None)

    def discard(self, connection: ClientConnection) -> None:
        """Forget a connection; harmless when it is forgotten already."""
        self._all.discard(connection)
        self._strangers.pop(connection, None)
        if not self._all:
            self._all_closed.set()

    async def abort_all(self) -> None:
        """End every connection, unanswered requests included, and wait until they are gone."""
        for connection in list(self._all):
            connection.transport.abort()
        await self._all_closed.wait()
