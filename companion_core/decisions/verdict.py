"""Rules for this folder.

A decision takes values and, where time matters, an explicit `now`. It imports no I/O, clock,
environment, logging or randomness; it returns a `Verdict` or an evidence value and never
raises on bad input. What a rule has proved gets a type of its own that only the rule makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from companion_core.errors import Reason

__all__ = ["OK", "Verdict", "refuse"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a rule: `ok`, and a reason from the closed list.

    Attributes:
        about: which part of a value was refused, in the rule's own words; nothing of the value.
    """

    ok: bool
    reason: Reason
    about: str = field(default="", compare=False, kw_only=True)


OK: Final = Verdict(ok=True, reason=Reason.OK)

# One refusal per reason, made once: a decision on the request path allocates nothing.
_REFUSALS: Final = {reason: Verdict(ok=False, reason=reason) for reason in Reason}


def refuse(reason: Reason, about: str = "") -> Verdict:
    """Return the refusal for `reason`."""
    return Verdict(ok=False, reason=reason, about=about) if about else _REFUSALS[reason]
