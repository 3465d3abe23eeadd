"""Why the last companion of an instance ended by itself, for whoever asks after its end.

A detached companion has nobody to tell. The next start removes the record.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from companion_core.config.paths import InstancePaths
from companion_core.errors import REASONS, CompanionError, Reason
from companion_core.system.state_files import read_private, write_private

__all__ = ["LastEnd", "forget_end", "last_end", "remember_end"]

_MAX_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEnd:
    """That a companion ended by itself.

    Attributes:
        at: when.
        reason: why.
    """

    at: datetime
    reason: Reason

    def told(self) -> str:
        """Return when, why and what to do about it."""
        at = self.at.isoformat(timespec="seconds").replace("+00:00", "Z")
        return f"it ended by itself at {at}: {self.reason.value}: {REASONS[self.reason].advice}"


def remember_end(paths: InstancePaths, end: LastEnd) -> None:
    """Record an end; one that cannot be recorded is not worth another error."""
    with contextlib.suppress(CompanionError):
        text = f"{end.at.isoformat()} {end.reason.value}\n"
        write_private(paths.last_end, text.encode("ascii"), durable=False)


def last_end(paths: InstancePaths) -> LastEnd | None:
    """Return how the last companion ended; None if somebody stopped it, or that is not known."""
    try:
        raw = read_private(paths.last_end, _MAX_BYTES)
        at, reason = (raw or b"").decode("ascii").split()
        return LastEnd(at=datetime.fromisoformat(at), reason=Reason(reason))
    except (CompanionError, OSError, ValueError):
        return None


def forget_end(paths: InstancePaths) -> None:
    """Remove the record: another companion starts."""
    paths.last_end.unlink(missing_ok=True)
