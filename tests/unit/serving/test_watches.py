"""When an overload and a keychain are told of: at the change, and not again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from companion_core.errors import PluginFault, Reason
from companion_core.serving.events import Event, EventKind
from companion_core.serving.watches import (
    OVERLOAD,
    QUIET_LOOKS,
    watch_keychain,
    watch_overload,
)

pytestmark = pytest.mark.unit


class Over(Exception):
    """Ends a watch that a test has seen enough of."""


def overloads(looks: Sequence[dict[Reason, int]]) -> list[tuple[EventKind, Reason]]:
    """Return what is told of these looks at the refusals."""
    left, told = list(looks), list[Event]()

    async def sleep(_seconds: float) -> None:
        if not left:
            raise Over

    async def life() -> None:
        with pytest.raises(Over):
            await watch_overload(lambda: left.pop(0), told.append, sleep=sleep)

    asyncio.run(life())
    return [(event.kind, event.reason) for event in told]


def keychains(answers: Sequence[Reason | Exception]) -> list[tuple[EventKind, Reason]]:
    left, told = list(answers), list[Event]()

    async def sleep(_seconds: float) -> None:
        if not left:
            raise Over

    async def ask() -> Reason:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def life() -> None:
        with pytest.raises(Over):
            await watch_keychain(ask, told.append, sleep=sleep)

    asyncio.run(life())
    return [(event.kind, event.reason) for event in told]


def test_what_was_refused_before_and_other_refusals_are_no_overload() -> None:
    assert (
        overloads([{Reason.QUEUE_FULL: 3}, {Reason.QUEUE_FULL: 3, Reason.MISSING_TOKEN: 9}]) == []
    )


@pytest.mark.parametrize("reason", sorted(OVERLOAD))
def test_an_overload_is_told_once_while_it_lasts(reason) -> None:
    looks = [{}, *({reason: count} for count in range(1, 5))]
    assert overloads(looks) == [(EventKind.OVERLOADED, reason)]


def test_the_most_frequent_reason_is_named() -> None:
    told = overloads([{}, {Reason.QUEUE_FULL: 2, Reason.RATE_LIMITED: 5, Reason.OK: 100}])
    assert told == [(EventKind.OVERLOADED, Reason.RATE_LIMITED)]


def test_an_overload_ends_after_a_quiet_time_and_may_come_again() -> None:
    once = {Reason.QUEUE_FULL: 1}
    again = {Reason.QUEUE_FULL: 2}
    almost = [once] * QUIET_LOOKS
    assert overloads([{}, *almost]) == [(EventKind.OVERLOADED, Reason.QUEUE_FULL)]
    assert overloads([{}, *almost, again]) == [(EventKind.OVERLOADED, Reason.QUEUE_FULL)]
    assert overloads([{}, *almost, once, again]) == [
        (EventKind.OVERLOADED, Reason.QUEUE_FULL),
        (EventKind.OVERLOAD_ENDED, Reason.OK),
        (EventKind.OVERLOADED, Reason.QUEUE_FULL),
    ]


def test_a_keychain_is_told_of_when_its_answer_changes() -> None:
    locked = Reason.KEYCHAIN_LOCKED
    fault = PluginFault(Reason.PLUGIN_RESULT_INVALID, "lamp")
    assert keychains([Reason.OK, locked, locked, fault, Reason.OK, Reason.OK]) == [
        (EventKind.KEYCHAIN_UNAVAILABLE, locked),
        (EventKind.KEYCHAIN_UNAVAILABLE, Reason.PLUGIN_RESULT_INVALID),
        (EventKind.KEYCHAIN_RESTORED, Reason.OK),
    ]
