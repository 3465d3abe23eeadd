"""`gateway.unix_socket`: the same door for a process that has no network."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from companion_core.system.owner_socket import listen_owner_only

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets"),
]


def ask(socket: str, key: str, *more: str, alone: bool = True) -> tuple[int, Any]:
    """Ask as a container would: without any network, not even the machine's loopback."""
    apart = ["/usr/bin/unshare", "-n"] if alone else []
    done = subprocess.run(
        [
            *apart,
            *("curl", "-sS", "--max-time", "30", "--unix-socket", socket),
            *("-H", f"Authorization: Bearer {key}", "-w", "\n%{http_code}", *more),
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    body, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(body) if body else None


def test_a_process_without_a_network_is_served_and_guarded(
    world: Any, require_real: Callable[[str, bool], None]
) -> None:
    parts = os.geteuid() == 0 and shutil.which("curl") and shutil.which("unshare")
    require_real("curl, and a network namespace, which needs root", bool(parts))
    world.publish()
    world.configure(gateway={"unix_socket": True})
    assert world.companion("up", "--detach").returncode == 0
    gateway = world.status()["gateway"]
    path, url = gateway["unix_socket"], gateway["url"]
    folder = Path(path).parent
    assert [each.name for each in folder.iterdir()] == ["http.sock"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    key = json.loads(world.companion("keys", "add", "app", "--json").stdout)["key"]

    status, listed = ask(path, key, f"{url}/models")
    assert status == 200, listed
    assert listed["data"][0]["id"] == "tiny"
    question = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})
    status, answer = ask(
        path, key, "-d", question, "-H", "Content-Type: application/json",
        f"{url}/chat/completions",
    )  # fmt: skip
    assert (status, bool(answer["choices"])) == (200, True)
    assert ask(path, "x" * 43, f"{url}/models")[0] == 401
    assert ask(path, key, "http://evil.example/v1/models")[0] == 421
    page = ("-H", "Origin: https://evil.example", f"{url}/models")
    assert ask(path, key, *page)[0] == 403
    rows = json.loads(world.companion("doctor", "--json").stdout)["rows"]
    assert [row for row in rows if row["status"] == "fail"] == []

    assert world.companion("down").returncode == 0
    assert not Path(path).exists()
    assert folder.is_dir()  # a container that has it finds the next socket there
    assert world.companion("up", "--detach").returncode == 0
    assert ask(path, key, f"{url}/models")[0] == 200


def test_without_being_asked_there_is_none(world: Any) -> None:
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert "unix_socket" not in world.status()["gateway"]


def test_what_a_killed_companion_left_is_no_hindrance(tmp_path: Path) -> None:
    first = listen_owner_only(tmp_path / "s")
    first.close()
    second = listen_owner_only(tmp_path / "s")

    async def reach() -> None:
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.close()

    asyncio.run(reach())
    second.close()
