"""A keychain that prints the token in every way, inside a detached companion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chatty_plugins import KEYCHAIN, SAY, SAY_NATIVELY

from companion_core.hookspecs import AUTHORITY_GROUP

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.name != "posix", reason="--detach is for POSIX systems")
def test_the_log_of_a_detached_companion_holds_no_token(
    world, install_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    files = {"companion_chatty/__init__.py": SAY + SAY_NATIVELY + KEYCHAIN}
    site = install_distribution(
        "chatty", files, {"chatty": "companion_chatty"}, group=AUTHORITY_GROUP
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    world.publish()
    world.configure(keychain={"name": "chatty"})
    trusted = world.companion("plugins", "trust", "chatty", "--yes")
    assert trusted.returncode == 0, trusted.stderr
    up = world.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    try:
        assert json.loads(up.stdout)["plugins"]["keychain"] == "chatty"
        token = world.companion("token", "--reveal").stdout.strip()
    finally:
        assert world.companion("down").returncode == 0
    assert token
    logs = [path for path in world.state.rglob("*.log") if path.is_file()]
    assert any(path.name == "companion.log" for path in logs)
    for path in logs:
        text = path.read_text()
        assert token not in text
        assert "SET" not in text
