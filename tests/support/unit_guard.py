"""Holds tests marked `unit` to their rule: such a test starts no process and opens no socket.

Python reports both to audit hooks (PEP 578), whichever module asks. A test that breaks the rule
fails, also where the code under test swallows the error. Socket pairs lead nowhere and are allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

STARTS = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "subprocess.Popen",
    }
)
OPENS = frozenset({"socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto"})
REFUSED = STARTS | OPENS


class UnitRuleBroken(AssertionError):
    """A unit test started a process or opened a socket."""


class _Guard:
    """One audit hook for the process: a hook cannot be taken away, so it is switched."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in REFUSED:
            self.seen.append(f"{event}{arguments!r:.200}")
            raise UnitRuleBroken(self.seen[-1])


_guard = _Guard()
sys.addaudithook(_guard.hear)


def _guarded(item: pytest.Item) -> Generator[None, Any, Any]:
    _guard.on = item.get_closest_marker("unit") is not None
    _guard.seen.clear()
    try:
        result = yield
    finally:
        _guard.on = False
    if _guard.seen:
        raise UnitRuleBroken(f"a unit test starts and opens nothing: {_guard.seen[0]}")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard the fixtures that the test asks for."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard the test itself."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard what the fixtures do at their end."""
    return (yield from _guarded(item))
