"""`companion service` with a real systemd user manager, and what it refuses without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's"),
]

SUPPORT = Path(__file__).parents[1] / "support"

# What a person does, beside their user manager; each answer is a line of JSON.
STORY = """
import json, os, signal, subprocess, sys, time
companion = json.loads(os.environ["COMPANION"])
def ask(*words):
    done = subprocess.run([*companion, *words, "--json"], capture_output=True, text=True)
    print(json.dumps([" ".join(words), done.returncode, json.loads(done.stdout or "null"),
                      done.stderr]), flush=True)
    return json.loads(done.stdout or "null")
def available(other_than=None):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done = subprocess.run([*companion, "status", "--json"], capture_output=True, text=True)
        status = json.loads(done.stdout)
        if status["available"] and status["pid"] != other_than:
            return status["pid"]
        time.sleep(0.2)
    sys.exit("it is not available")
ask("service", "install")
pid = available()
ask("service", "status")
ask("status")
ask("service", "install")
os.kill(pid, signal.SIGKILL)
subprocess.run(["systemctl", "--user", "restart", "companion"], check=True)
available(other_than=pid)
ask("service", "uninstall")
ask("status")
ask("service", "uninstall")
ask("service", "status")
"""


@pytest.fixture
def me(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    home = world.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    world.unit = home / ".config" / "systemd" / "user" / "companion.service"
    world.publish()
    world.configure()
    return world


@pytest.fixture
def real_manager(require_real: Callable[[str, bool], None]) -> None:
    parts = ("/usr/lib/systemd/systemd", "/usr/bin/systemctl", "/usr/bin/unshare")
    there = os.geteuid() == 0 and all(map(os.path.exists, parts))
    require_real("a systemd user manager in namespaces of its own, which needs root", there)


def test_it_serves_from_login_on_and_ends_with_the_service(me: Any, real_manager: None) -> None:
    done = subprocess.run(
        [
            *("/usr/bin/unshare", "-pfm", "--mount-proc", sys.executable),
            *(str(SUPPORT / "user_manager.py"), sys.executable, "-c", STORY),
        ],
        env={**os.environ, "COMPANION": json.dumps(me.argv())},
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    installed, state, served, again, removed, after, nothing, absent = told
    assert installed[1:3] == [
        0,
        {
            "installed": True,
            "state": "ok",
            "running": True,
            "manager": "systemd",
            "file": str(me.unit),
            "changed": True,
        },
    ]
    assert (state[2]["state"], state[2]["running"]) == ("ok", True)
    assert served[2]["available"]
    assert again[2]["changed"] is False
    assert removed[2] == {"removed": True, "manager": "systemd"}
    assert after[1] == 5
    assert nothing[2]["removed"] is False
    assert (absent[2]["installed"], absent[2]["state"]) == (False, "absent")
    assert not me.unit.exists()


def test_systemd_finds_nothing_wrong_in_the_unit(
    me: Any, tmp_path: Path, require_real: Callable[[str, bool], None]
) -> None:
    require_real("systemd-analyze", shutil.which("systemd-analyze") is not None)
    unit = tmp_path / "companion.service"
    unit.write_text(me.companion("service", "install", "--print").stdout)
    assert not me.unit.exists()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    about_it = [line for line in done.stderr.splitlines() if "companion" in line]
    assert (done.returncode, about_it) == (0, [])


def test_without_a_manager_nothing_is_left_and_the_way_on_is_named(me: Any) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(me.folder), "DBUS_SESSION_BUS_ADDRESS": ""}
    refused = me.companion("service", "install", env=environ)
    assert refused.returncode == 4
    assert "service_manager_absent" in refused.stderr
    assert "companion up --detach" in refused.stderr
    assert not me.unit.exists()


def test_a_keychain_of_the_desktop_session_is_refused_with_the_alternatives(me: Any) -> None:
    me.configure(keychain={"name": "linux"})
    refused = me.companion("service", "install")
    assert refused.returncode == 4
    assert "keychain_session_bound" in refused.stderr
    for way in ("companion up --detach", 'keychain.name = "memory"', "models.key_file"):
        assert way in refused.stderr
    assert not me.unit.exists()
    assert "[Service]" in me.companion("service", "install", "--print").stdout
