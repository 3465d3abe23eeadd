"""Which connections may stay, which make room, and that none is lost sight of."""

from __future__ import annotations

import asyncio

import pytest

from companion_core.gateway.connections import LOOKED_AT, ConnectionTable

pytestmark = pytest.mark.unit


class Client:
    """A connection whose peer reads nothing: it is gone only when it is aborted."""

    def __init__(self, table: ConnectionTable, *, unread: bool = False) -> None:
        self._table = table
        self.turned_away = False
        self.unread = unread
        self.looks = 0

    def waits_to_be_read(self) -> bool:
        self.looks += 1
        return self.unread

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


def test_one_whose_request_waits_to_be_read_keeps_its_place() -> None:
    async def life() -> None:
        table = ConnectionTable(2)
        asking, idle, third, fourth = (
            Client(table, unread=each) for each in (True, False, False, False)
        )
        for each in (asking, idle, third, fourth):
            assert table.add(each)
        assert [each.turned_away for each in (asking, idle, third)] == [False, True, True]
        asking.unread = False  # it was read, and showed nothing
        assert table.add(Client(table))
        assert asking.turned_away

    asyncio.run(life())


def test_where_all_wait_to_be_read_the_oldest_goes_and_few_are_looked_at() -> None:
    async def life() -> None:
        table = ConnectionTable(100)
        clients = [Client(table, unread=True) for _ in range(101)]
        for each in clients:
            assert table.add(each)
        assert [each.turned_away for each in clients] == [True] + [False] * 100
        assert sum(each.looks for each in clients) == LOOKED_AT

    asyncio.run(life())
