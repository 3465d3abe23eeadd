"""Open an address in the person's own browser, with the starter of their system.

The address is one argument of a program, never a line for a shell: it holds `&` and is chosen by
a server. Only an https address is opened; a starter would run a file or call another program for
other schemes.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.system.deadline import start_call

if TYPE_CHECKING:
    import subprocess

__all__ = ["open_browser", "starters"]

# A starter that finds no browser has ended by then; one that became the browser still runs.
SETTLE_SECONDS: Final = 1.5

_MACOS: Final = "/usr/bin/open"
_OTHERS: Final = ("xdg-open", "x-www-browser", "sensible-browser")


def starters(platform: str, find: Callable[[str], str | None] = shutil.which) -> list[list[str]]:
    """Return the commands that may open an address on this system, the usual one first."""
    if platform == "darwin":
        return [[_MACOS]]
    return [[program] for name in _OTHERS if (program := find(name)) is not None]


def open_browser(
    url: str, start: Callable[..., subprocess.Popen[bytes]], *, platform: str = sys.platform
) -> bool:
    """Return whether a browser shows the address, as far as its starter says.

    Args:
        url: https, with a query.
        start: `Egress.start_process`.
        platform: as `sys.platform`.
    """
    if not isinstance(parse_https_url(url), HttpsUrl):
        return False
    if platform == "win32":
        return _open_on_windows(url)
    return any(_runs(start, [*command, url]) for command in starters(platform))


def _open_on_windows(url: str) -> bool:
    # ShellExecute takes one address; `cmd /c start` would run what comes after an `&`.
    start_file: Any = getattr(os, "startfile", None)
    if start_file is None:
        return False
    try:
        start_file(url)
    except OSError:
        return False
    return True


def _runs(start: Callable[..., subprocess.Popen[bytes]], command: list[str]) -> bool:
    import subprocess  # noqa: PLC0415 - loaded on first use

    try:
        starter = start(command, env=dict(os.environ))
    except OSError:
        return False
    try:
        return starter.wait(SETTLE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        start_call(starter.wait)  # it became the browser; its end is taken notice of
        return True
