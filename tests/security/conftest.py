"""What the tests of hostile plugins share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_zoo import Zoo


@pytest.fixture
def zoo(
    install_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Zoo]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    zoo = Zoo(install_distribution)
    sys.path.insert(0, str(zoo.site))
    yield zoo
    for name in [name for name in sys.modules if name.startswith("companion_zoo_")]:
        del sys.modules[name]
