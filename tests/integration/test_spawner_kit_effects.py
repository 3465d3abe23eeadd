"""The kit fails a spawner whose plan touches the machine, whatever it asks of the system."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.testing import FakeSpawner, SpawnerAbilities, check_spawner
from companion_core.testing.spawner_kit import SPAWNER_RULES

pytestmark = pytest.mark.integration

KIND = SpawnerAbilities(chat_template=False)


class Impure(FakeSpawner):
    """Does something beside its plan."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def plan(self, request: Any) -> Any:
        with suppress(OSError):
            self.act()
        return super().plan(request)


NOWHERE = "/nonexistent/folder/file"
ACTS = (
    lambda: Path(NOWHERE).write_text("x"),
    lambda: os.open(NOWHERE, os.O_RDWR),
    lambda: os.open(NOWHERE, os.O_RDONLY | os.O_CREAT),
    lambda: os.open(NOWHERE, os.O_WRONLY | os.O_APPEND),
    lambda: Path(NOWHERE).mkdir(),
    lambda: Path(NOWHERE).unlink(),
    lambda: Path(NOWHERE).rename("/nonexistent/other"),
    lambda: Path(NOWHERE).chmod(0o600),
    lambda: Path(NOWHERE).symlink_to("/nonexistent/other"),
    lambda: os.utime(NOWHERE),
    lambda: os.truncate(NOWHERE, 0),
    lambda: subprocess.Popen([NOWHERE]),
    lambda: os.system("true"),  # noqa: S605 - what a plan must not do
    lambda: os.kill(os.getpid(), 0),
    lambda: socket.create_connection(("127.0.0.1", 9), timeout=0.1),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: os.putenv("LAMP", "1"),
)
if sys.version_info >= (3, 12):  # no earlier Python tells of a thread
    ACTS += (lambda: threading.Thread(target=Path(NOWHERE).exists).start(),)


@pytest.mark.parametrize("act", ACTS)
def test_a_plan_that_does_something_is_named(act: Callable[[], object]):
    assert_breaks(6, SPAWNER_RULES, "spawner", lambda: check_spawner(Impure(act), KIND))


def test_what_is_read_or_imported_by_a_plan_is_no_effect(tmp_path: Path):
    (tmp_path / "companion_lazy.py").write_text("x = 1\n")

    def act() -> None:
        Path("/dev/null").read_bytes()
        sys.path.insert(0, str(tmp_path))
        try:
            importlib.import_module("companion_lazy")
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("companion_lazy", None)

    check_spawner(Impure(act), KIND)
