"""A product that PyInstaller made one program of, with the real llama.cpp beside it.

`make test-frozen` builds it, as one folder and as one file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

BUILT = os.environ.get("COMPANION_TEST_FROZEN", "")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not BUILT, reason="built by make test-frozen"),
]

BUILDS = ("folder/product/product", "file/product")


@pytest.fixture(params=BUILDS, ids=["one folder", "one file"])
def frozen(request) -> Path:
    return Path(BUILT) / request.param


def run(frozen: Path, world, interpreter: str) -> list[str]:
    done = subprocess.run(
        [frozen, world.config_file, world.state, interpreter],
        capture_output=True, text=True, timeout=100, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(world.folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def copies(frozen: Path) -> int:
    found = 0
    for process in psutil.process_iter(["exe"]):
        found += process.info["exe"] == str(frozen)
    return found


def test_it_serves_with_an_interpreter_that_it_names(frozen, world) -> None:
    world.publish()
    world.configure()
    answer, isolation, events = run(frozen, world, sys.executable)
    assert "companion" in answer.lower()
    assert isolation
    assert events == "runtime_ended runtime_restarting runtime_restored"
    assert world.wait_until_alone() == []


def test_it_is_refused_without_one_and_never_starts_itself(frozen, world) -> None:
    world.publish()
    world.configure()
    (line,) = run(frozen, world, "")
    assert line.startswith("interpreter_missing")
    (line,) = run(frozen, world, str(frozen))
    assert line.startswith("interpreter_missing ")
    assert copies(frozen) == 0
    assert world.wait_until_alone() == []
