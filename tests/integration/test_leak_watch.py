"""The search of every test's output for secrets finds one that is planted, in a run of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SUPPORT = Path(__file__).parents[1] / "support"
CONFTEST = """
import leak_watch

def pytest_configure(config):
    leak_watch.install(config)
"""
# Each test makes a secret as the product does and puts it where no secret may be.
LEAKS = """
import logging
import secrets
import sys

import pytest

from companion_core.authority.loopback_token import generate_loopback_token
from companion_core.runtime.supervisor import new_backend_key

MADE_EARLIER = generate_loopback_token().reveal()


def test_stdout():
    print("token is", generate_loopback_token().reveal())


def test_stderr():
    print(f"key=x{new_backend_key().reveal()}y", file=sys.stderr)


def test_log():
    logging.getLogger("any").warning("made %s", secrets.token_urlsafe(32))


def test_file(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "runtime.log").write_text(f"Bearer {new_backend_key().reveal()}")


def test_rotated_file(tmp_path):
    (tmp_path / "runtime.log.1").write_text(MADE_EARLIER)


def test_made_earlier():
    print(MADE_EARLIER)


@pytest.fixture
def leaking():
    yield
    print(MADE_EARLIER)


def test_teardown(leaking):
    pass


def test_quiet(tmp_path):
    token = generate_loopback_token()
    print(token, repr(token), "x" * 43, secrets.token_urlsafe(8))
    (tmp_path / "runtime.log").write_text(f"{token}")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_leaks.py").write_text(LEAKS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rA",
            "-v",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("test", "where"),
    [
        ("test_stdout", "Captured stdout call"),
        ("test_stderr", "Captured stderr call"),
        ("test_log", "Captured log call"),
        ("test_file", "runtime.log"),
        ("test_rotated_file", "runtime.log.1"),
        ("test_made_earlier", "Captured stdout call"),
        ("test_teardown", "Captured stdout teardown"),
    ],
)
def test_a_planted_leak_fails_the_test_that_leaks(
    run: subprocess.CompletedProcess[str], test: str, where: str
) -> None:
    assert re.search(
        rf"^ERROR .*::{test} - a secret .* stands in: {where}$", run.stdout, re.MULTILINE
    )


def test_a_test_without_a_leak_passes(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 1
    assert not re.search(r"^ERROR .*::test_quiet", run.stdout, re.MULTILINE)
    assert "8 passed, 7 errors" in run.stdout
