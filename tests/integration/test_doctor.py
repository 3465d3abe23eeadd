"""`companion doctor` as a person runs it: fresh, running, damaged, killed, interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from runtime_parts import alive, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="companion up does not start there yet"),
]

DEADLINE_SECONDS = 60
UNLOCKED_KEYRING = Path(__file__).parents[1] / "support" / "unlocked_keyring.py"


def examine(world, *arguments: str, **options):
    """Return the exit code, the rows by id and the whole document."""
    done = world.companion("doctor", "--json", *arguments, **options)
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    return done.returncode, {row["id"]: row for row in document["rows"]}, document


def failed(rows) -> dict[str, str]:
    return {id_: row["reason"] for id_, row in rows.items() if row["status"] == "fail"}


def not_by_plugins(rows) -> dict[str, str]:
    """Return the failures, but for whether this checkout's plugins are the shipped ones."""
    return {id_: why for id_, why in failed(rows).items() if not id_.startswith("plugin.linux")}


def test_without_a_configuration_and_a_state_it_answers_and_makes_nothing(world):
    code, rows, document = examine(world)
    assert code in {3, 4}
    assert rows["configuration"]["reason"] == "configuration_invalid"
    assert {f"I-{number:02}" for number in range(1, 19)} <= set(rows)
    assert rows["companion"]["reason"] == "not_running"
    assert document["ok"] is False
    assert not world.state.exists()


SHUT = """
import sys
from companion_core.cli import main
from companion_core.egress.refusing import RefusingEgress
sys.exit(main(sys.argv[1:], egress=RefusingEgress()))
"""


def test_what_a_shut_doorway_refuses_is_skipped(world):
    world.publish()
    world.configure(runtime={"name": "llamacpp"})
    at_fault = failed(examine(world)[1])
    command = [sys.executable, "-c", SHUT, *world.argv("doctor", "--json")[3:]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    assert {id_: why for id_, why in failed(rows).items() if id_ not in at_fault} == {}
    assert rows["plugins"]["status"] == rows["manifest"]["status"] == "skip"


def test_a_broken_configuration_is_a_row_and_the_rest_goes_on(world):
    world.config_file.write_text("[gateway]\nprot = 1\n")
    code, rows, _ = examine(world)
    assert code in {3, 4}
    assert "did you mean port" in rows["configuration"]["detail"]
    assert rows["loopback-v4"]["status"] == "ok"
    assert rows["manifest"]["status"] == "skip"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show all of it")
def test_nothing_fails_before_or_beside_a_running_companion(world):
    world.publish()
    world.configure()
    code, rows, _ = examine(world)
    assert not_by_plugins(rows) == {}
    assert code == (3 if failed(rows) else 0)
    assert rows["manifest"]["status"] == "ok"
    assert not world.state.exists(), "looking changes nothing"

    up = world.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    port = json.loads(up.stdout)["gateway"]["url"].rpartition(":")[2].partition("/")[0]
    code, rows, _ = examine(world, "--repair")
    assert not_by_plugins(rows) == {}
    running = [
        "companion", "available", "verified", "running-runtime", "gateway", "admission",
        "resources", "runtime-environment", "runtime-sockets", "gateway-sockets", "guard",
        "process", "logs", "models", "processes",
    ]  # fmt: skip
    assert {id_: rows[id_]["status"] for id_ in running} == dict.fromkeys(running, "ok")
    assert port in rows["gateway-sockets"]["detail"]
    for number in range(1, 19):
        row = rows[f"I-{number:02}"]
        assert (row["status"], "not looked at" in row["detail"]) == ("ok", False), row
    assert world.status()["available"] is True, "looking and repairing disturb nothing"


def test_the_open_backend_is_red(world):
    world.publish()
    world.configure()
    text = world.config_file.read_text().replace(
        "threads = 1", "threads = 1\nunsafe_open_backend = true"
    )
    world.config_file.write_text(text)
    code, rows, document = examine(world)
    assert code == 3
    assert rows["config.runtime.unsafe_open_backend"]["status"] == "fail"
    assert (rows["I-07"]["status"], rows["I-07"]["reason"]) == ("fail", "backend_open")
    assert document["reason"] in {"backend_open", "plugin_changed"}


def test_wrong_modes_are_told_closed_and_then_fine(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    instance = world.state / "instances" / "default"
    wrong = [world.state, instance / "logs", instance / "logs" / "runtime.log"]
    for path in wrong:
        path.chmod(path.stat().st_mode | 0o055)
    code, rows, _ = examine(world)
    assert code == 3
    assert rows["state-folder"]["reason"] == rows["I-18"]["reason"] == "state_path_unsafe"
    assert rows["state-folder"]["fix"] == "companion doctor --repair"
    code, rows, document = examine(world, "--repair")
    assert rows["state-folder"]["status"] == "repaired"
    assert document["counts"]["repaired"] == 1
    assert rows["I-18"]["status"] == "ok"
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in wrong] == [0, 0, 0]
    code, rows, _ = examine(world)
    assert not_by_plugins(rows) == {}


def test_what_a_killed_companion_left_is_told_and_removed(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    status = world.status()
    runtime = psutil.Process(status["runtime"]["pid"])
    companion = psutil.Process(status["pid"])
    keepers = [
        each for each in companion.children(recursive=True) if "keeper" in str(each.cmdline())
    ]
    # All at once, so that no process is left to clear up.
    for process in (companion, *keepers):
        process.suspend()
    for process in (companion, *keepers):
        process.kill()
    with contextlib.suppress(psutil.TimeoutExpired):
        companion.wait(DEADLINE_SECONDS)
    code, rows, _ = examine(world)
    assert rows["companion"]["reason"] == "not_running"
    assert rows["state-file"]["reason"] == "stale_state"
    assert rows["processes"]["reason"] in {"stale_runtime", "stale_state"}
    assert code in {3, 4}
    code, rows, _ = examine(world, "--repair")
    assert rows["state-file"]["status"] == rows["processes"]["status"] == "repaired"
    assert not runtime.is_running() or runtime.status() == psutil.STATUS_ZOMBIE
    code, rows, _ = examine(world)
    assert not_by_plugins(rows) == {}
    assert world.wait_until_alone() == []


def test_a_changed_model_is_told(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    [stored] = world.stored_models()
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.chmod(0o600)
    stored.write_bytes(content)
    stored.chmod(0o400)
    code, rows, _ = examine(world)
    assert code == 3
    assert {rows[id_]["reason"] for id_ in ("models", "I-01", "I-04")} == {"digest_mismatch"}


def test_a_bundle_of_a_running_companion_holds_no_secret(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    token = world.companion("token").stdout.strip()
    log = world.state / "instances" / "default" / "logs" / "companion.log"
    with log.open("a") as file:
        file.write(f"note: Bearer {token}\nwords of a prompt\n")
    path = world.folder / "bundle.tar.gz"
    examine(world, "--bundle", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as archive:
        text = "".join(
            file.read().decode() for entry in archive if (file := archive.extractfile(entry))
        )
    for secret in (token, "words of a prompt", world.public_key, str(world.folder)):
        assert secret not in text
    assert "loading model" in text
    again = world.companion("doctor", "--bundle", str(path))
    assert again.returncode == 2


def test_a_hanging_plugin_costs_its_own_row_and_ctrl_c_leaves_nothing(world, install_distribution):
    site = install_distribution(
        "companion-runtime-sleeper",
        {"zoo_sleeper/__init__.py": "import threading\nthreading.Event().wait(3600)\n"},
        {"sleeper": "zoo_sleeper"},
    )
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parents[2]}"}
    trust_as_it_is(world, site)
    with subprocess.Popen(
        world.argv("doctor"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as doctor:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            started = psutil.Process(doctor.pid)
            while not (children := started.children()):
                assert doctor.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            doctor.send_signal(signal.SIGINT)
            _, err = doctor.communicate(timeout=DEADLINE_SECONDS)
        finally:
            if doctor.poll() is None:
                doctor.kill()
    assert doctor.returncode == 130, err
    assert err.splitlines()[-1].startswith("companion: interrupted: ")
    assert wait_until(lambda: not any(alive(each.pid) for each in children))

    code, rows, _ = examine(world, env=environment)
    assert code == 3
    row = rows["plugin.sleeper"]
    assert (row["status"], row["reason"]) == ("fail", "plugin_import_failed")
    for fact in ("companion-runtime-sleeper", "0.1.0"):
        assert fact in row["detail"]
    assert row["advice"]
    assert row["fix"]
    assert rows["plugin.https"]["status"] == "ok"


def trust_as_it_is(world, site: Path) -> None:
    """Trust a plugin that would not pass the trial, as one that began to hang since then."""
    from companion_core.config.paths import InstancePaths  # noqa: PLC0415 - one test alone needs it
    from companion_core.plugin_host.inventory import find_plugins  # noqa: PLC0415 - one test alone needs it
    from companion_core.plugin_host.rules import record_of  # noqa: PLC0415 - one test alone needs it
    from companion_core.plugin_host.trust_store import TrustStore  # noqa: PLC0415 - one test alone needs it

    paths = InstancePaths(world.state)
    paths.prepare()
    [found] = find_plugins([str(site)])
    TrustStore(paths.plugin_store).trust(record_of(found))


@pytest.fixture
def with_keyring(tmp_path: Path, require_real):
    """Run the doctor on a private bus, whose keyring is unlocked with a password or missing."""
    tools = ("gnome-keyring-daemon", "dbus-run-session")
    require_real("gnome-keyring", all(map(shutil.which, tools)))
    folders = [tmp_path / name for name in ("home", "run", "state")]
    for folder in folders:
        folder.mkdir(mode=0o700)
    home, runtime, state = map(str, folders)

    def run(password: str | None) -> tuple[int, dict[str, dict]]:
        unlock = f"'{sys.executable}' '{UNLOCKED_KEYRING}' {password} && "
        doctor = f"'{sys.executable}' -m companion_core --state-dir {state} doctor --json"
        done = subprocess.run(
            ["dbus-run-session", "--", "sh", "-c", ("" if password is None else unlock) + doctor],
            env={"HOME": home, "XDG_RUNTIME_DIR": runtime, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        rows = json.loads(done.stdout)["rows"]
        return done.returncode, {row["id"]: row for row in rows}

    return run


def test_a_real_keychain_is_told_as_absent_proved_or_told_as_locked(with_keyring):
    code, rows = with_keyring(None)
    # The bus starts a keyring of its own, in which nobody has made a collection yet.
    assert (rows["keychain"]["reason"], code) == ("keychain_collection_missing", 4)
    _, rows = with_keyring("password")
    assert rows["plugin.linux"]["status"] == "ok", rows["plugin.linux"]
    assert rows["keychain"]["status"] == rows["I-13"]["status"] == "ok"
    assert "written, read and deleted" in rows["keychain"]["detail"]
    code, rows = with_keyring("another")
    assert (rows["keychain"]["reason"], code) == ("keychain_locked", 4)
    assert (rows["I-13"]["status"], rows["I-13"]["detail"]) == ("skip", "needs keychain")
