"""The gateway's port, chosen at the first start and kept, so that clients can store the address."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from companion_core.errors import CompanionError
from companion_core.system.state_files import read_private, write_private

__all__ = ["keep_port", "kept_port"]

_MAX_BYTES: Final = 16
_LARGEST: Final = 65535


def kept_port(path: Path) -> int:
    """Return the port of earlier starts; 0 if there is none that can be read."""
    try:
        raw = read_private(path, _MAX_BYTES)
    except CompanionError:
        return 0
    text = "" if raw is None else raw.decode("ascii", errors="replace").strip()
    port = int(text) if text.isascii() and text.isdigit() else 0
    return port if port <= _LARGEST else 0


def keep_port(path: Path, port: int) -> None:
    """Keep the port for later starts; one that cannot be kept costs no start."""
    with contextlib.suppress(CompanionError, OSError):
        write_private(path, f"{port}\n".encode("ascii"))
