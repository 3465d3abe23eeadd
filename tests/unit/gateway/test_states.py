"""The tables of states: complete, closed, and an illegal transition changes nothing."""

from __future__ import annotations

from typing import Any

import gateway_parts as parts
import pytest

from companion_core.gateway import GatewaySettings
from companion_core.gateway.client import ClientConnection
from companion_core.gateway.context import GatewayContext
from companion_core.gateway.exchange import Exchange
from companion_core.gateway.states import (
    CONNECTION_TABLE,
    EXCHANGE_TABLE,
    ConnectionEvent,
    ConnectionState,
    ExchangeEvent,
    ExchangeState,
    IllegalTransition,
)
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

TABLES = pytest.mark.parametrize(
    ("table", "states", "events", "start", "end"),
    [
        (
            CONNECTION_TABLE,
            ConnectionState,
            ConnectionEvent,
            ConnectionState.READING_HEAD,
            ConnectionState.CLOSED,
        ),
        (EXCHANGE_TABLE, ExchangeState, ExchangeEvent, ExchangeState.IDLE, ExchangeState.IDLE),
    ],
    ids=["connection", "exchange"],
)


def reachable(table: Any, start: Any) -> set[Any]:
    seen, new = set(), {start}
    while new:
        seen |= new
        new = {moves[state] for moves in table.values() for state in seen & moves.keys()} - seen
    return seen


@TABLES
def test_every_event_is_listed_and_every_state_is_reached(
    table: Any, states: Any, events: Any, start: Any, end: Any
) -> None:
    assert list(table) == list(events)
    assert all(table.values())
    assert reachable(table, start) == set(states)
    assert all(end in reachable(table, state) for state in states)


def test_a_closed_connection_stays_closed() -> None:
    assert reachable(CONNECTION_TABLE, ConnectionState.CLOSED) == {ConnectionState.CLOSED}


@TABLES
def test_an_unlisted_transition_is_refused_and_changes_nothing(
    table: Any, states: Any, events: Any, start: Any, end: Any
) -> None:
    for event in events:
        listed = dict(table[event])
        for before in set(states) - listed.keys():
            state = before
            with pytest.raises(IllegalTransition):
                state = table[event][state]
            assert state is before
        assert table[event] == listed


class Wire:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None: ...


@pytest.fixture
def context() -> GatewayContext:
    settings = GatewaySettings(token=Secret(parts.TOKEN), model_id="m")
    return GatewayContext(settings, parts.Conditions(), parts.Clock())


def test_a_connection_that_is_gone_takes_up_no_request(context: GatewayContext) -> None:
    connection = ClientConnection(context)
    connection.connection_made(Wire())  # type: ignore[arg-type]  # a double of a transport
    connection.connection_lost(None)
    deadline = connection.deadline
    for use in (
        lambda: connection.wait_for_backend(5.0),
        lambda: connection.connection_lost(None),
    ):
        with pytest.raises(IllegalTransition):
            use()
        assert connection._state is ConnectionState.CLOSED
        assert connection.deadline == deadline


def test_an_answer_that_no_request_waits_for_is_never_passed_on(context: GatewayContext) -> None:
    connection, wire = ClientConnection(context), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]  # a double of a transport
    exchange = Exchange(context, connection)
    head: Any = object()
    with pytest.raises(IllegalTransition):
        exchange.response_started(head, b"x")
    with pytest.raises(IllegalTransition):
        exchange.response_ended(1.0)
    assert exchange._state is ExchangeState.IDLE
    assert wire.written == []
