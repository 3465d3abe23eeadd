"""What the conformance checks share: numbered rules, and calls with a deadline.

No check needs pytest: a broken rule raises an `AssertionError` with its number, what was seen
and what was expected.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from companion_core.errors import Reason
from companion_core.system.deadline import call_with_deadline

__all__ = ["CALL_SECONDS", "KIT_VERSION", "Rulebook", "Untried", "type_name"]

KIT_VERSION: Final = "1.1"
CALL_SECONDS: Final = 10.0
"""How long one call of a provider may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untried:
    """What a check could not try here.

    Attributes:
        what: for a person: the rules and why they could not be tried.
        reason: `ok`, or why nothing can be said of the provider here, such as a locked store.
    """

    what: str
    reason: Reason = Reason.OK


class Rulebook:
    """The rules of one seam, by their numbers.

    Args:
        seam: what a broken rule is named with.
        rules: each rule's text, by its number.
        call_seconds: how long one call of a provider may take.
    """

    def __init__(
        self, seam: str, rules: Mapping[int, str], *, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._seam = seam
        self._rules = rules
        self._call_seconds = call_seconds

    def expect(self, rule: int, met: bool, *, seen: str, expected: str) -> None:
        """Raise `AssertionError` unless `met`."""
        if not met:
            raise self.broken(rule, seen=seen, expected=expected)

    def broken(self, rule: int, *, seen: str, expected: str) -> AssertionError:
        """Return the exception which says that `rule` is broken."""
        return AssertionError(
            f"{self._seam} rule {rule} ({self._rules[rule]}): seen {seen}, expected {expected}"
        )

    def ask(
        self, rule: int, function: Callable[..., Any], *args: Any, may_raise: tuple[type, ...] = ()
    ) -> Any:
        """Return what the provider answers, or the exception of `may_raise` that it raises.

        Any other exception, an awaitable in place of a value and a missed deadline break `rule`.
        """
        error: BaseException | None = None
        answer: Any = None
        try:
            answer = call_with_deadline(function, *args, seconds=self._call_seconds)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # noqa: BLE001 - SystemExit breaks the rule too
            error = raised
        if error is not None:
            if isinstance(error, may_raise):
                return error
            names = ", ".join(["a value", *(kind.__name__ for kind in may_raise)])
            raise self.broken(rule, seen=f"{type_name(error)} raised", expected=names) from error
        waits = inspect.isawaitable(answer) or inspect.isgenerator(answer)
        if waits:
            with contextlib.suppress(Exception):
                answer.close()
        self.expect(rule, not waits, seen=type_name(answer), expected="a value, synchronously")
        return answer


def type_name(value: object) -> str:
    """Return the name of the type of `value`, for a message."""
    return type(value).__name__
