"""Rules for this file: whether a browser of this machine, or another device, signs the person in.

A person who came over ssh sits at another machine, whose browser does not reach this one's
loopback; a Linux session without a display has no browser window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["has_browser"]

_REMOTE: Final = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")
_DISPLAYS: Final = ("DISPLAY", "WAYLAND_DISPLAY")
_WITHOUT_X: Final = frozenset({"win32", "darwin"})


def has_browser(platform: object, environment: object) -> bool:
    """Return whether the person sees a browser of this machine.

    Args:
        platform: `sys.platform`.
        environment: the variables of the process.
    """
    if not isinstance(platform, str) or not isinstance(environment, Mapping):
        return False
    if any(environment.get(name) for name in _REMOTE):
        return False
    return platform in _WITHOUT_X or any(environment.get(name) for name in _DISPLAYS)
