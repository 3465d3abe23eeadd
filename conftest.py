"""What every test of the core and of the plugins may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest

pytest_plugins = ["unit_guard"]  # in tests/support

# The machine may be busy: how long an example takes says nothing about the rule.
hypothesis.settings.register_profile("companion", deadline=None)
hypothesis.settings.load_profile("companion")


@pytest.fixture(scope="session")
def require_real() -> Callable[[str, bool], None]:
    """Skip, naming the real part that is missing; fail when every part is required."""

    def require(part: str, present: bool) -> None:
        if present:
            return
        if os.environ.get("COMPANION_REQUIRE_REAL") == "1":
            pytest.fail(f"a real part is missing: {part}")
        pytest.skip(f"a real part is missing: {part}")

    return require


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Give the next test the umask that this one found.

    A command that a test runs in its own process closes the umask, as it is to (I-18).
    """
    before = os.umask(0o077)
    os.umask(before)
    yield
    os.umask(before)
