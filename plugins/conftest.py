"""Make every plugin importable in its own tests.

`make test` installs the plugins for this system, as a person would. The others are imported
from their source trees; an installed plugin takes precedence.
"""

import importlib.util
import sys
from pathlib import Path

import leak_watch
import pytest

for pyproject in sorted(Path(__file__).parent.glob("*/pyproject.toml")):
    folder = pyproject.parent
    if importlib.util.find_spec(f"companion_{folder.name}") is None:
        sys.path.append(str(folder))


def pytest_configure(config: pytest.Config) -> None:
    """Search what each test writes for the secrets that it made."""
    leak_watch.install(config)
