"""A test marked `unit` that starts a process or opens a socket fails, whatever it does then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import unit_guard

pytestmark = pytest.mark.integration

TESTS = """
import os, pytest, socket, subprocess, sys

def start():
    subprocess.run([sys.executable, "-c", ""], check=True)

def fork():
    if os.fork() == 0:
        os._exit(0)

def bind():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))

def connect():
    with socket.socket() as made:
        made.connect_ex(("127.0.0.1", 9))

def swallow():
    try:
        start()
    except BaseException:
        pass

@pytest.fixture
def started():
    start()

@pytest.mark.unit
@pytest.mark.parametrize("effect", [start, fork, bind, connect, swallow])
def test_breaks(effect):
    effect()

@pytest.mark.unit
def test_breaks_in_a_fixture(started):
    pass

@pytest.mark.unit
def test_holds():
    for end in socket.socketpair():
        end.close()

@pytest.mark.integration
@pytest.mark.parametrize("effect", [start, bind, connect])
def test_may(effect, started):
    effect()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_unit_test_that_starts_or_opens_something_fails(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  unit\n  integration\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "unit_guard", "-p", "no:randomly", "-rA"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(unit_guard.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    outcome = {
        line.split()[1].partition("::")[2]: line.split()[0]
        for line in done.stdout.splitlines()
        if line.startswith(("PASSED", "FAILED", "ERROR"))
    }
    assert {name for name, result in outcome.items() if result == "PASSED"} == {
        "test_holds",
        *(f"test_may[{effect}]" for effect in ("start", "bind", "connect")),
    }, done.stdout
    assert len(outcome) == 10
