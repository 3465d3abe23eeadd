"""What the tests of a refused `companion up` share."""

from __future__ import annotations

import json
from typing import Any

from companion_core.errors import REASONS, Reason


def expect_refusal(world: Any, reason: Reason, code: int) -> None:
    """Bring it up; see the refusal in text and JSON, no process and no model left."""
    up = world.companion("up", "--detach", "--json")
    assert up.returncode == code, up.stderr
    assert up.stderr.splitlines()[-1] == f"companion: {reason.value}: {REASONS[reason].advice}"
    assert json.loads(up.stdout) == {
        "ok": False,
        "reason": reason.value,
        "advice": REASONS[reason].advice,
    }
    assert world.wait_until_alone() == []
    assert world.stored_models() == []
    assert world.companion("status").returncode == 5
