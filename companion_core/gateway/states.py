"""Rules for this file: a connection and an exchange change state only along these tables.

A table maps an event to its `Moves`, and those map a state to the next one. A state that is not
listed is an error and changes nothing: the look-up raises before the new state is assigned. The
tables are the one truth that the code, the tests and `docs/guard.md` read.

States are compared by identity and moved by one look-up in C. Users bind the members and the
moves to names of their own module, because Python 3.11 searches an enum's class at each use.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NoReturn, TypeAlias, TypeVar

__all__ = [
    "CONNECTION_TABLE",
    "EXCHANGE_TABLE",
    "ConnectionEvent",
    "ConnectionState",
    "ExchangeEvent",
    "ExchangeState",
    "IllegalTransition",
    "Moves",
]

State = TypeVar("State", bound=enum.StrEnum)


class IllegalTransition(RuntimeError):
    """An event came in a state that its moves do not list: a fault of this program."""


class Moves(dict[State, State]):
    """What one event makes of each state: `state = moves[state]`.

    Raises:
        IllegalTransition: the event must not come in this state.
    """

    def __missing__(self, state: State) -> NoReturn:
        raise IllegalTransition(f"in the state {state}")


class ConnectionState(enum.StrEnum):
    """What a client's connection is doing."""

    READING_HEAD = "reading_head"  # between two requests, or in the middle of a head
    READING_BODY = "reading_body"
    AWAITING_ANSWER = "awaiting_answer"  # the exchange has the request
    LINGERING = "lingering"  # answered and half closed; what still arrives is thrown away
    CLOSING = "closing"  # what was written is still on its way to the client
    CLOSED = "closed"


class ConnectionEvent(enum.StrEnum):
    """What can happen to a client's connection."""

    BODY_AWAITED = "body_awaited"  # the guard passed a head whose body has not all come
    BODY_READ = "body_read"
    HANDED_OVER = "handed_over"  # the exchange has the request, or waits for something else now
    ANSWERED = "answered"  # by the backend or by the gateway; the connection goes on
    ANSWERED_LAST = "answered_last"  # the client, or the framing, ends the connection here
    REFUSED_LAST = "refused_last"  # what follows on the wire can no longer be told apart
    TURNED_AWAY = "turned_away"  # to make room
    LOST = "lost"


class ExchangeState(enum.StrEnum):
    """What a client's exchange waits for."""

    IDLE = "idle"
    AWAITING_CHECK = "awaiting_check"  # of a large body, or a new observation of the resources
    AWAITING_PLACE = "awaiting_place"  # in the admission queue
    AWAITING_BACKEND = "awaiting_backend"  # a health check that is held
    AWAITING_ANSWER = "awaiting_answer"  # the request was sent, or its connection is being made
    RELAYING = "relaying"  # the head of the answer has been passed on


class ExchangeEvent(enum.StrEnum):
    """What can happen to a client's exchange."""

    CHECKING = "checking"
    QUEUED = "queued"
    HELD = "held"
    SENT = "sent"
    ANSWER_STARTED = "answer_started"
    ANSWER_ENDED = "answer_ended"
    GIVEN_UP = "given_up"  # refused, failed, or the client has left


_C: TypeAlias = ConnectionState
CONNECTION_TABLE: Final[Mapping[ConnectionEvent, Moves[ConnectionState]]] = MappingProxyType(
    {
        ConnectionEvent.BODY_AWAITED: Moves({_C.READING_HEAD: _C.READING_BODY}),
        ConnectionEvent.BODY_READ: Moves({_C.READING_BODY: _C.READING_HEAD}),
        ConnectionEvent.HANDED_OVER: Moves(
            {
                _C.READING_HEAD: _C.AWAITING_ANSWER,
                _C.AWAITING_ANSWER: _C.AWAITING_ANSWER,
            }
        ),
        ConnectionEvent.ANSWERED: Moves(
            {
                _C.READING_HEAD: _C.READING_HEAD,
                _C.AWAITING_ANSWER: _C.READING_HEAD,
            }
        ),
        ConnectionEvent.ANSWERED_LAST: Moves(
            {
                _C.READING_HEAD: _C.CLOSING,
                _C.AWAITING_ANSWER: _C.CLOSING,
            }
        ),
        ConnectionEvent.REFUSED_LAST: Moves(
            {
                _C.READING_HEAD: _C.LINGERING,
                _C.READING_BODY: _C.LINGERING,
                _C.AWAITING_ANSWER: _C.LINGERING,
            }
        ),
        ConnectionEvent.TURNED_AWAY: Moves({_C.READING_HEAD: _C.CLOSING}),
        ConnectionEvent.LOST: Moves(
            {
                _C.READING_HEAD: _C.CLOSED,
                _C.READING_BODY: _C.CLOSED,
                _C.AWAITING_ANSWER: _C.CLOSED,
                _C.LINGERING: _C.CLOSED,
                _C.CLOSING: _C.CLOSED,
            }
        ),
    }
)

_X: TypeAlias = ExchangeState
EXCHANGE_TABLE: Final[Mapping[ExchangeEvent, Moves[ExchangeState]]] = MappingProxyType(
    {
        ExchangeEvent.CHECKING: Moves(
            {
                _X.IDLE: _X.AWAITING_CHECK,
                _X.AWAITING_PLACE: _X.AWAITING_CHECK,  # it has its place
            }
        ),
        ExchangeEvent.QUEUED: Moves({_X.IDLE: _X.AWAITING_PLACE}),
        ExchangeEvent.HELD: Moves({_X.IDLE: _X.AWAITING_BACKEND}),
        ExchangeEvent.SENT: Moves(
            {
                _X.IDLE: _X.AWAITING_ANSWER,
                _X.AWAITING_PLACE: _X.AWAITING_ANSWER,
                _X.AWAITING_BACKEND: _X.AWAITING_ANSWER,
            }
        ),
        ExchangeEvent.ANSWER_STARTED: Moves({_X.AWAITING_ANSWER: _X.RELAYING}),
        ExchangeEvent.ANSWER_ENDED: Moves({_X.RELAYING: _X.IDLE}),
        ExchangeEvent.GIVEN_UP: Moves(
            {
                _X.IDLE: _X.IDLE,  # the client left between two requests
                _X.AWAITING_CHECK: _X.IDLE,  # also when it goes on from the beginning
                _X.AWAITING_PLACE: _X.IDLE,
                _X.AWAITING_BACKEND: _X.IDLE,
                _X.AWAITING_ANSWER: _X.IDLE,
                _X.RELAYING: _X.IDLE,
            }
        ),
    }
)
