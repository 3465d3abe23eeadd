"""Which connections may stay, which make room, and that none is lost sight of."""

from __future__ import annotations

import asyncio

import pytest

from companion_core.gateway.connections import ConnectionTable

pytestmark = pytest.mark.unit


class Client:
    """A connection whose peer reads nothing: it is gone only when it is aborted."""

    def __init__(self, table: ConnectionTable) -> None:
        self._table = table
        self.turned_away = False

    def turn_away(self) -> None:
        self.turned_away = True

    def abort(self) -> None:
        self._table.discard(self)


def test_one_that_was_turned_away_is_seen_until_it_is_gone() -> None:
    async def life() -> None:
        table = ConnectionTable(2)
        first, second, third = (Client(table) for _ in range(3))
        assert [table.add(each) for each in (first, second, third)] == [True, True, True]
        assert first.turned_away
        assert set(table) == {first, second, third}
        assert len(table) == 3
        async with asyncio.timeout(30):
            await table.abort_all()
        assert list(table) == []
        assert not table

    asyncio.run(life())


def test_an_owner_is_never_turned_away_for_a_stranger() -> None:
    async def life() -> None:
        table = ConnectionTable(1)
        owner, stranger = Client(table), Client(table)
        assert table.add(owner)
        table.trust(owner)
        assert not table.add(stranger)
        assert not owner.turned_away

    asyncio.run(life())
