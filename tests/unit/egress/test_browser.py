from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from companion_core.egress import browser
from companion_core.egress.browser import open_browser, starters

pytestmark = pytest.mark.unit

URL = "https://login.example/authorize?state=a&code_challenge=b&calc.exe"


class Starter:
    """A program that has been started: how it ends, and what it was started with."""

    def __init__(self, ends: int | OSError | None) -> None:
        self.ends = ends
        self.commands: list[list[str]] = []

    def __call__(self, argv: list[str], **_: Any) -> Starter:
        self.commands.append(argv)
        if isinstance(self.ends, OSError):
            raise self.ends
        return self

    def wait(self, timeout: float | None = None) -> int:
        if self.ends is None and timeout is not None:
            raise subprocess.TimeoutExpired("browser", timeout)
        assert not isinstance(self.ends, OSError)
        return self.ends or 0


@pytest.fixture(autouse=True)
def starter_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # The search of PATH is the machine's: no argument names what is installed.
    monkeypatch.setattr(browser, "starters", lambda platform: [["/bin/starter"]])


@pytest.mark.parametrize(("ends", "opened"), [(0, True), (None, True), (3, False)])
def test_a_browser_is_open_unless_its_starter_fails(ends: int | None, opened: bool) -> None:
    starter = Starter(ends)
    assert open_browser(URL, starter, platform="linux") is opened
    assert starter.commands == [["/bin/starter", URL]]


def test_a_starter_that_is_gone_is_no_error() -> None:
    assert open_browser(URL, Starter(FileNotFoundError()), platform="linux") is False


def test_without_a_starter_no_browser_can_be_opened() -> None:
    assert starters("linux", find=lambda _name: None) == []
    assert starters("linux", find=lambda name: f"/usr/bin/{name}")[0] == ["/usr/bin/xdg-open"]
    assert starters("darwin", find=lambda _name: None) == [["/usr/bin/open"]]


@pytest.mark.parametrize(
    "url", ["http://login.example/", "file:///etc/passwd", "javascript:1", "-a", "calc.exe", ""]
)
def test_only_an_https_address_is_opened(url: str) -> None:
    starter = Starter(0)
    assert open_browser(url, starter, platform="linux") is False
    assert starter.commands == []


def test_windows_gets_one_address_and_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(os, "startfile", opened.append, raising=False)
    starter = Starter(0)
    assert open_browser(URL, starter, platform="win32") is True
    assert opened == [URL]
    assert starter.commands == []

    def fails(_url: str) -> None:
        raise OSError

    monkeypatch.setattr(os, "startfile", fails, raising=False)
    assert open_browser(URL, starter, platform="win32") is False
