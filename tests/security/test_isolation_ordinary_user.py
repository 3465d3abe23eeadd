"""What a tier promises holds for an ordinary user as it does for root.

Root may do more than an ordinary user, and an ordinary user's namespaces differ from root's, so
both are tested. Where the tests run as an ordinary user, that user is the one tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import runtime_parts as parts

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]

FILES = [
    "tests/security/test_isolation.py",
    "tests/security/test_keeper_out_of_reach.py",
    "tests/security/test_model_held_against_runtime.py",
    "tests/integration/test_runtime_isolation.py",
]


def test_the_tiers_hold_for_an_ordinary_user(require_real: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("the tests of the tiers run as an ordinary user already")
    with tempfile.TemporaryDirectory() as folder:
        program = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *FILES]
        child = parts.run_as(
            parts.ORDINARY_USER, program, Path(folder), stdout=subprocess.PIPE, text=True
        )
        require_real("a Python for an ordinary user", child is not None)
        output, _ = child.communicate(timeout=110)
    assert child.returncode == 0, output
    assert " passed" in output
    require_real("a tier for an ordinary user", "a real part is missing" not in output)
