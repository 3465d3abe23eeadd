"""Rules for this file: whether the companion may call itself available (I-09).

Available means verified, ready and bound, with a stored token and a health answer that is recent
and not from the future. Any doubt means no; the reason is that of the first fact that fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from companion_core.decisions.lifecycle import can_serve_inference
from companion_core.decisions.numbers import is_finite
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["RECENCY_SECONDS", "AvailabilityFacts", "evaluate_availability"]

RECENCY_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityFacts:
    """The facts of this moment. Only `True` counts as true.

    Attributes:
        verified: the started model has evidence (I-01).
        state: the lifecycle state, a `State` or its name.
        listener_bound: the gateway holds its loopback port.
        token_stored: the loopback token is in the keychain.
        last_health_ok: when the last good health answer came; None: never.
        now: the present, on the same clock: seconds, monotonic, counting sleep (I-18).
        recency_seconds: how old that answer may be, inclusive.
    """

    verified: bool
    state: str
    listener_bound: bool
    token_stored: bool
    last_health_ok: float | None
    now: float
    recency_seconds: float = RECENCY_SECONDS


def evaluate_availability(facts: object) -> Verdict:
    """Return whether all facts hold, else the first that fails (I-09)."""
    if not isinstance(facts, AvailabilityFacts) or facts.verified is not True:
        return refuse(Reason.NOT_VERIFIED)
    if not can_serve_inference(facts.state):
        return refuse(Reason.NOT_READY)
    if facts.listener_bound is not True:
        return refuse(Reason.LISTENER_NOT_BOUND)
    if facts.token_stored is not True:
        return refuse(Reason.TOKEN_NOT_STORED)
    if (
        is_finite(facts.now)
        and is_finite(facts.last_health_ok)
        and is_finite(facts.recency_seconds)
        and facts.recency_seconds > 0
        and 0 <= facts.now - facts.last_health_ok <= facts.recency_seconds
    ):
        return OK
    return refuse(Reason.HEALTH_STALE)
