"""Rules for this file: lifecycle moves only along `TRANSITIONS`, and only `ready` serves.

An unlisted pair is refused and changes nothing. The table is the one truth that the code, the
tests and `docs/lifecycle.md` read (invariant I-09).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.errors import Reason

__all__ = ["TRANSITIONS", "Event", "State", "Transition", "can_serve_inference", "transition"]


class State(enum.StrEnum):
    """Where the runtime is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Event(enum.StrEnum):
    """What can happen to the runtime.

    `EXITED` is a runtime that ended by itself; `ABORTED` a start that was given up.
    """

    START = "start"
    HEALTH_OK = "health_ok"
    HEALTH_FAIL = "health_fail"
    DRAIN = "drain"
    STOPPED = "stopped"
    EXITED = "exited"
    ABORTED = "aborted"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.STOPPED, Event.START): State.STARTING,
        (State.STARTING, Event.HEALTH_OK): State.READY,
        (State.STARTING, Event.HEALTH_FAIL): State.STOPPED,
        (State.STARTING, Event.EXITED): State.STOPPED,
        (State.STARTING, Event.ABORTED): State.STOPPED,
        (State.READY, Event.DRAIN): State.DRAINING,
        (State.READY, Event.EXITED): State.STOPPED,
        (State.DRAINING, Event.STOPPED): State.STOPPED,
        (State.DRAINING, Event.EXITED): State.STOPPED,
    }
)


@dataclass(frozen=True, slots=True)
class Transition:
    """The answer to one event.

    Attributes:
        ok: the event was in order.
        state: the state from now on. After a refusal it is the one before, or `STOPPED` where
            that was unknown: an unknown state must not serve.
        reason: `Reason.OK`, or why not.
    """

    ok: bool
    state: State
    reason: Reason


# A member is its text, so that a name finds the row of its member.
_MOVES: Final[dict[tuple[str, str], Transition]] = {
    pair: Transition(ok=True, state=state, reason=Reason.OK) for pair, state in TRANSITIONS.items()
}
_REFUSALS: Final = {
    (state, reason): Transition(ok=False, state=state, reason=reason)
    for state in State
    for reason in (Reason.INVALID_TRANSITION, Reason.UNKNOWN_EVENT, Reason.UNKNOWN_STATE)
}
_READY: Final = State.READY
_STATES: Final = {state.value: state for state in State}


def transition(state: object, event: object) -> Transition:
    """Return what `event` makes of `state`; both are names or members (I-09).

    In this order: a state that is not a text is `unknown_state`; an event that is empty or not a
    text is `unknown_event`; an unknown name of a state is `unknown_state`; a pair that the table
    does not list, such as one with an unknown event, is `invalid_transition`.
    """
    if not isinstance(state, str):
        return _REFUSALS[State.STOPPED, Reason.UNKNOWN_STATE]
    current = _STATES.get(state)
    if not isinstance(event, str) or not event:
        return _REFUSALS[current or State.STOPPED, Reason.UNKNOWN_EVENT]
    if current is None:
        return _REFUSALS[State.STOPPED, Reason.UNKNOWN_STATE]
    return _MOVES.get((current, event), _REFUSALS[current, Reason.INVALID_TRANSITION])


def can_serve_inference(state: object) -> bool:
    """Return whether the runtime may be given work: only in `ready` (I-09)."""
    return isinstance(state, str) and state == _READY
