"""An interrupt while a program starts is held back until the caller can end that program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.cli import Settings
from companion_core.cli.detached import start_detached
from companion_core.egress.live import LiveEgress
from companion_core.plugin_trial.trial import Trial

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    """Let them arrive also where the tests run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(LiveEgress):
    """Starts another program, and is interrupted before its caller gets the process."""

    def start_process(self, argv: Any, **options: Any) -> Any:
        self.started = super().start_process(["/bin/sleep", "60"], **options)
        signal.raise_signal(signal.SIGINT)
        return self.started


def test_an_interrupted_trial_leaves_no_child() -> None:
    egress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Trial(egress=egress, records=[]).run(["lamp"])
    assert egress.started.returncode == -signal.SIGKILL


def test_an_interrupted_detached_start_ends_its_child(tmp_path: Path) -> None:
    egress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        start_detached(
            Settings(egress=egress, state_dir=tmp_path / "state"), None, lambda _step: None
        )
    assert egress.started.returncode == -signal.SIGTERM
