"""A short soak and a short mix: the programs of `make soak` and `make mixed`, on real parts."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.stress,
    pytest.mark.alone,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the faults are Linux's"),
]

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAMS / program), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(autouse=True)
def _real_llama(require_real: Callable[[str, bool], None]) -> None:
    require_real("xllamacpp", importlib.util.find_spec("xllamacpp") is not None)


def test_a_short_soak_loses_no_request_and_leaves_nothing_grown() -> None:
    done = run("soak.py", "15")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost and nothing has grown." in done.stdout


def test_every_502_of_a_short_mix_is_one_that_the_backend_caused() -> None:
    done = run("mixed_requests.py", "llamacpp=400", "python-idle=400", "python-breaks=400")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = (line.split(" | ") for line in done.stdout.splitlines() if "python-breaks" in line)
    assert int(row[5]) == int(row[6]) > 0
