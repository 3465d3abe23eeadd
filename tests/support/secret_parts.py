"""Secrets for tests."""

from __future__ import annotations

from typing import Any

from companion_core.system.secret import Secret


def hide(value: Any) -> Any:
    """Return a secret of a text; any other value, which is no secret, comes back unchanged."""
    return Secret(value) if isinstance(value, str) else value
