"""The Linux keychain against a real GNOME Keyring, each scenario on a private bus and HOME."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SCENARIOS = Path(__file__).with_name("secret_service_scenarios.py")
SUPPORT = Path(__file__).parents[1] / "support"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path, require_real: Callable[[str, bool], None]) -> Run:
    tools = ("gnome-keyring-daemon", "dbus-run-session", "timeout")
    require_real("gnome-keyring", all(map(shutil.which, tools)))
    home, runtime = tmp_path / "home", tmp_path / "run"
    for folder in (home, runtime):
        folder.mkdir(mode=0o700)

    def run_scenario(
        name: str, password: str | None = None, *, bus: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        # -X dev and -W error: a D-Bus connection that stays open is a failure.
        python = [sys.executable, "-X", "dev", "-W", "error", str(SCENARIOS), name]
        session = ["timeout", "60", "dbus-run-session", "--"] if bus else ["timeout", "60"]
        clean = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
        }
        return subprocess.run(
            [*session, *python, *([password] if password is not None else [])],
            env=clean | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    return run_scenario


def assert_passed(outcome: subprocess.CompletedProcess[str]) -> None:
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr, outcome.stderr


@pytest.mark.parametrize(
    "scenario",
    [
        *("conformance", "custody", "named_collection", "not_text", "redirected", "round_trip"),
        "several_matches",
    ],
)
def test_an_unlocked_keyring_keeps_secrets(run: Run, scenario: str) -> None:
    assert_passed(run(scenario, "password"))


def test_a_locked_keyring_is_refused_without_a_prompt(run: Run) -> None:
    assert_passed(run("locked", "password"))


def test_a_wrong_password_is_a_locked_keyring(run: Run) -> None:
    assert_passed(run("store_and_leave", "password"))
    assert_passed(run("refused_as_locked", "another"))
    assert_passed(run("find_again", "password"))


def test_without_a_collection_none_is_created(run: Run) -> None:
    assert_passed(run("no_collection"))


def test_without_a_bus_the_keychain_is_absent(run: Run, tmp_path: Path) -> None:
    assert_passed(run("refused_as_absent", bus=False))
    address = f"unix:path={tmp_path / 'nobody'}"
    assert_passed(run("refused_as_absent", bus=False, DBUS_SESSION_BUS_ADDRESS=address))


def test_a_bus_that_never_answers_is_given_up(run: Run, tmp_path: Path) -> None:
    address = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        assert_passed(run("silent_bus", bus=False, DBUS_SESSION_BUS_ADDRESS=f"unix:path={address}"))


def test_a_scenario_can_fail(run: Run) -> None:
    assert run("refused_as_locked", "password").returncode != 0
