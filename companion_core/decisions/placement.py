"""Rules: where a runtime has placed a model, from what it says itself.

What can be said without it: a runtime that reaches no accelerator computes on the processor. In all
other cases only its own words count; without them the placement is unknown, and never guessed.
Imports values only.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from companion_core.decisions.plan_texts import plain_name
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["Placement", "check_placement", "is_placement_text", "judge_placement", "read_placement"]

_MOST: Final = 2**53
_FIELD: Final = re.compile(r"\{(placed|all)\}")


class Placement(enum.StrEnum):
    """Where a runtime computes."""

    GPU = "gpu"
    PARTLY_GPU = "partly_gpu"
    CPU = "cpu"
    UNKNOWN = "unknown"


def is_placement_text(value: object) -> bool:
    """Tell whether a plugin's text may be looked for: `{placed}` once, `{all}` at most once."""
    text = plain_name(value)
    if text is None:
        return False
    return text.count("{placed}") == 1 and text.count("{all}") <= 1


def read_placement(texts: object, line: object) -> Placement | None:
    """Return what a line of the runtime's output says, or None if it says nothing of it.

    Args:
        texts: of the plan; what `is_placement_text` does not allow is not looked for.
        line: as the runtime wrote it.
    """
    if type(line) is not str or not isinstance(texts, list | tuple):
        return None
    for text in filter(is_placement_text, texts):
        parts = _FIELD.split(text)
        literal, fields = parts[::2], parts[1::2]
        if literal[0] not in line:
            continue
        pattern = "".join(
            re.escape(part) + (rf"(?P<{field}>[0-9]{{1,16}})" if field else "")
            for part, field in zip(literal, [*fields, ""], strict=True)
        )
        found = re.search(pattern, line)
        if found is None:
            continue
        placed = int(found["placed"])
        whole = int(found["all"]) if "all" in fields else 0
        if placed == 0:
            return Placement.CPU
        return Placement.PARTLY_GPU if placed < whole <= _MOST else Placement.GPU
    return None


def judge_placement(told: Placement | None, *, reaches_gpu: bool) -> Placement:
    """Return where the model is.

    Args:
        told: by the runtime, if it said anything.
        reaches_gpu: the machine has an accelerator, and the runtime may use it.
    """
    if not reaches_gpu:
        return Placement.CPU
    return Placement.UNKNOWN if told is None else told


def check_placement(placement: Placement, *, require_gpu: bool) -> Verdict:
    """Return `gpu_required` where an accelerator is required and is not known to be used."""
    if require_gpu and placement not in {Placement.GPU, Placement.PARTLY_GPU}:
        return refuse(Reason.GPU_REQUIRED)
    return OK
