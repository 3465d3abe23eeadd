"""Rules for this file: answers counted in, Prometheus text out (exposition format 0.0.4).

Labels come from closed lists: served paths and reasons. Nothing a client sent is a label, and
no number says anything about a request but how long its answer took (I-15).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.errors import Reason

__all__ = ["BUCKETS", "RequestMetrics"]

# Upper bounds in seconds: from a refusal to the longest answer.
BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LABELS: Final = (*(format(bound, "g") for bound in BUCKETS), "+Inf")


_OF_ONE_MODEL: Final = "/v1/models/"


def _label(path: str) -> str:
    return f"{_OF_ONE_MODEL}ID" if path.startswith(_OF_ONE_MODEL) else "other"


class RequestMetrics:
    """Counts answers and their seconds, from the end of a head to the end of its answer."""

    __slots__ = ("_paths", "_rows")

    def __init__(self, paths: Iterable[str]) -> None:
        """Tell `paths` apart, and those of one model; every other one is counted as `other`."""
        self._paths = frozenset(paths)
        self._rows: dict[tuple[str, Reason], list[float]] = {}

    def observe(self, path: str, reason: Reason, seconds: float) -> None:
        """Count one answer."""
        try:
            row = self._rows[path, reason]
        except KeyError:
            label = path if path in self._paths else _label(path)
            # One count per bucket, then the sum.
            row = self._rows.setdefault((label, reason), [0] * (len(_LABELS) + 1))
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds

    def totals(self) -> dict[Reason, int]:
        """Return how many answers there were for each reason."""
        totals: dict[Reason, int] = {}
        for (_, reason), (*counts, _seconds) in self._rows.items():
            totals[reason] = totals.get(reason, 0) + int(sum(counts))
        return totals

    def text(self, admission: AdmissionSnapshot, connections: int) -> str:
        """Return what `companion metrics` prints."""
        lines = [
            "# HELP companion_request_seconds From a request's head to the end of its answer.",
            "# TYPE companion_request_seconds histogram",
        ]
        for (path, reason), (*counts, total) in sorted(self._rows.items()):
            labels = f'path="{path}",reason="{reason.value}"'
            lines += [
                f'companion_request_seconds_bucket{{{labels},le="{bound}"}} {number:.0f}'
                for bound, number in zip(_LABELS, accumulate(counts), strict=True)
            ]
            lines.append(f"companion_request_seconds_sum{{{labels}}} {total:.6f}")
            lines.append(f"companion_request_seconds_count{{{labels}}} {sum(counts):.0f}")
        gauges = {
            "in_flight": ("Requests that the runtime works on.", admission.in_flight),
            "max_in_flight": ("Requests that it may work on at once.", admission.max_in_flight),
            "queued": ("Requests that wait for a place.", admission.queued),
            "queue_bound": ("Requests that may wait.", admission.queue_bound),
            "connections": ("Client connections that are open.", connections),
        }
        for name, (meaning, value) in gauges.items():
            lines.append(f"# HELP companion_{name} {meaning}")
            lines.append(f"# TYPE companion_{name} gauge")
            lines.append(f"companion_{name} {value}")
        return "\n".join(lines) + "\n"
