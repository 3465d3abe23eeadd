"""What a product that embeds the companion imports, and what that loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import companion_core
from companion_core import errors
from companion_core.serving import status, step

pytestmark = pytest.mark.integration


def test_every_public_name_is_there() -> None:
    assert all(getattr(companion_core, name) is not None for name in companion_core.__all__)
    assert companion_core.CompanionStatus is status.CompanionStatus
    assert companion_core.Step is step.Step
    assert companion_core.Refused is errors.Refused
    with pytest.raises(AttributeError):
        _ = companion_core.Supervisor


@pytest.mark.parametrize("code", ["import companion_core", "from companion_core import Refused"])
def test_the_package_alone_and_its_errors_load_no_event_loop(code) -> None:
    probe = f"import sys; {code}; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
