"""Conformance of a resource probe, on the process that runs the check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from companion_core.decisions.resources import evaluate_resources
from companion_core.plugin_host import Role, snapshot_provider
from companion_core.providers import ProbeFailed, ProbeTarget, ResourceLimits, ResourceObservation
from companion_core.testing.rulebook import Rulebook, type_name

__all__ = ["PROBE_RULES", "check_probe"]

PROBE_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "observe is a method",
        2: "observe returns a ResourceObservation with numbers in range",
        3: "a living process uses memory",
        4: "memory that the process takes is counted",
        5: "a process that has ended is ProbeFailed, or not counted",
        6: "no process at all is ProbeFailed, or uses nothing",
    }
)

_LIMITS: Final = ResourceLimits(max_ram_bytes=2**62, max_vram_bytes=2**62, max_cpu_percent=100)
_TAKEN_BYTES: Final = 64 * 1024 * 1024
_TRIES: Final = 3
_NOBODY: Final = 2**22 + 1  # beyond the highest pid that Linux gives
_BOOK: Final = Rulebook("probe", PROBE_RULES)


def check_probe(provider: Any) -> None:
    """Check `provider` against `PROBE_RULES`.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected.
    """
    snapshot = snapshot_provider(Role.PROBE, provider)
    _BOOK.expect(1, not isinstance(snapshot, str), seen=f"{snapshot}", expected="a ResourceProbe")
    here = ProbeTarget(pids=(os.getpid(),))
    before = _observe(2, provider, here)
    _BOOK.expect(3, before.ram_bytes > 0, seen="0 bytes", expected="more")
    # Another part of this process may give as much back in the same moment.
    grown = max(_growth(provider, here) for _ in range(_TRIES))
    _BOOK.expect(
        4,
        grown > _TAKEN_BYTES // 2,
        seen=f"{grown} bytes more",
        expected=f"about {_TAKEN_BYTES}",
    )
    for rule, pids in ((5, (_NOBODY,)), (6, ())):
        answer = _BOOK.ask(rule, provider.observe, ProbeTarget(pids=pids), may_raise=(ProbeFailed,))
        nothing = isinstance(answer, ProbeFailed) or getattr(answer, "ram_bytes", 1) == 0
        _BOOK.expect(rule, nothing, seen=f"{answer!r}", expected="ProbeFailed")


def _growth(provider: Any, here: ProbeTarget) -> int:
    """Return how many bytes more are observed after this process has taken `_TAKEN_BYTES`."""
    before = _observe(2, provider, here)
    taken = b"x" * _TAKEN_BYTES
    after = _observe(2, provider, here)
    del taken
    return after.ram_bytes - before.ram_bytes


def _observe(rule: int, provider: Any, target: ProbeTarget) -> ResourceObservation:
    seen = _BOOK.ask(rule, provider.observe, target)
    exact = type(seen) is ResourceObservation
    _BOOK.expect(rule, exact, seen=type_name(seen), expected="ResourceObservation")
    fits = evaluate_resources(seen, _LIMITS).ok
    _BOOK.expect(rule, fits, seen=f"{seen!r}", expected="numbers in range")
    observation: ResourceObservation = seen
    return observation
