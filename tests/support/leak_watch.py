"""Fail the test in whose output a secret stands that this process made.

`secrets.token_urlsafe` is wrapped, in the tests alone, so that every session token, backend key
and canary made from here on is known. After each test its captured stdout, stderr and log
records are searched for them, and the `*.log` files that it left under its `tmp_path`: there the
children write, whose keys their parent made.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# A shorter text may be a word; a secret has at least 128 bits, which are 22 characters.
SHORTEST = 22
INDEXED = 12
MAX_FILES = 50
MAX_FILE_BYTES = 1 << 20
_RUNS = re.compile(rf"[A-Za-z0-9_-]{{{SHORTEST},}}")


class LeakWatch:
    """A pytest plugin; `install` puts it into a run once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def remember(self, secret: str) -> None:
        """Search for this secret from now on."""
        if len(secret) >= SHORTEST:
            self._known[secret[:INDEXED]] = secret

    def holds_secret(self, text: str) -> bool:
        """Tell whether a secret stands anywhere in `text`; the time grows with `text` alone."""
        for run in _RUNS.findall(text):
            for at in range(len(run) - SHORTEST + 1):
                secret = self._known.get(run[at : at + INDEXED])
                if secret is not None and run.startswith(secret, at):
                    return True
        return False

    def _leaks(self, item: pytest.Item, report: pytest.TestReport) -> Iterator[str]:
        """Name each place where a secret stands; never the secret."""
        for title, text in report.sections:
            if self.holds_secret(text):
                yield title
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        for path in _logs_below(folder) if isinstance(folder, Path) else ():
            if path.is_file() and self.holds_secret(_end_of(path)):
                yield path.name

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = yield
        if call.when == "teardown" and report.passed and (leaks := list(self._leaks(item, report))):
            report.outcome = "failed"
            report.longrepr = f"a secret that this process made stands in: {', '.join(leaks)}"
            report.sections.clear()  # they would be printed
        return report


def _logs_below(folder: Path) -> list[Path]:
    """Return its logs; a folder that cannot be read, as one whose path is too long, has none."""
    logs = [
        Path(place, name) for place, _, names in os.walk(folder) for name in names if ".log" in name
    ]
    return sorted(logs)[:MAX_FILES]


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_FILE_BYTES))
            return file.read(MAX_FILE_BYTES).decode("latin-1")
    except OSError:
        return ""


def install(config: pytest.Config) -> None:
    """Watch this run; a second call changes nothing."""
    if config.pluginmanager.has_plugin("leak-watch"):
        return
    watch = LeakWatch()
    make = secrets.token_urlsafe

    def token_urlsafe(nbytes: int | None = None) -> str:
        made = make(nbytes)
        watch.remember(made)
        return made

    secrets.token_urlsafe = token_urlsafe
    config.add_cleanup(lambda: setattr(secrets, "token_urlsafe", make))
    config.pluginmanager.register(watch, "leak-watch")
