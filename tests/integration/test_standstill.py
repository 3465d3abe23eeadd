"""A companion that was stopped for a while takes its own standstill for nobody else's silence."""

from __future__ import annotations

import os
import signal
import time

import pytest
from swap_world import Client

pytestmark = pytest.mark.integration


def test_the_first_request_after_a_standstill_is_answered(world) -> None:
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    client, before = Client(world), world.status()
    for _ in range(3):
        os.kill(before["pid"], signal.SIGSTOP)
        try:
            time.sleep(2.5)
        finally:
            os.kill(before["pid"], signal.SIGCONT)
        assert client.chat("tiny") == "ok"
    after = world.status()
    assert after["runtime"]["pid"] == before["runtime"]["pid"]
    assert after["available"] is True
