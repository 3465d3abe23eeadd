"""What a detached companion tells its parent, and what it leaves in its log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from companion_core.cli import Settings, main, up_command

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="descriptors are handed on by number"),
]


def test_the_parent_hears_the_detail_and_the_log_only_the_reason(world):
    world.publish()
    missing = world.folder / "company-ca.pem"
    world.configure(network={"extra_ca_file": str(missing)})
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as pipe:
        done = subprocess.run(
            world.argv("up", "--announce-fd", str(writing)),
            pass_fds=[writing],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.close(writing)
        told = json.loads(pipe.read().splitlines()[-1])
    assert done.returncode == 2
    assert told["error"] == "configuration_invalid"
    assert str(missing) in told["detail"]
    assert str(world.folder) not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("companion: configuration_invalid: ")
    log = (world.state / "instances" / "default" / "logs" / "companion.log").read_text()
    assert str(world.folder) not in log
    assert "Z companion: ended configuration_invalid\n" in log, "with its time"


@pytest.mark.parametrize("stage", ["read_config", "run_event_loop"])
def test_the_parent_hears_of_a_limit_of_the_system(tmp_path, monkeypatch, capsys, stage):
    """Whichever thread or descriptor is the first that the child does not get."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    owner = Settings if stage == "read_config" else up_command
    monkeypatch.setattr(owner, stage, refuse)
    monkeypatch.setattr(up_command, "_read_config", lambda settings, _: settings.read_config())
    monkeypatch.setattr(up_command, "_serve", lambda *_, **__: None)
    for name in ("harden_process", "set_output_apart"):
        monkeypatch.setattr(up_command, name, lambda: None)
    (tmp_path / "config.toml").write_text("")
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as pipe:
        options = ["--config", str(tmp_path / "config.toml"), "--state-dir", str(tmp_path / "s")]
        code = main([*options, "up", "--announce-fd", str(writing)])
        told = json.loads(pipe.read().splitlines()[-1])
    assert code == 4
    assert told["error"] == "limit_reached"
    assert "ulimit -u" in told["detail"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("companion: limit_reached: ")


def test_a_person_sees_why_a_detached_start_failed(world):
    world.publish()
    missing = world.folder / "company-ca.pem"
    world.configure(network={"extra_ca_file": str(missing)})
    up = world.companion("up", "--detach")
    assert up.returncode == 2
    assert str(missing) in up.stderr
    assert up.stderr.splitlines()[-1].startswith("companion: configuration_invalid: ")


def test_an_untrusted_certificate_is_named(world):
    world.publish()
    document = world.document()
    del document["network"]
    world.document = lambda **_: document
    world.configure()
    up = world.companion("up", "--detach")
    assert up.returncode == 4
    assert "network.extra_ca_file" in up.stderr
    assert up.stderr.splitlines()[-1].startswith("companion: manifest_unavailable: ")


def test_a_detached_companion_imports_nothing_from_its_working_folder(world):
    world.publish()
    world.configure()
    folder = world.state / "instances" / "default"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "click.py").write_text("raise SystemExit('imported')\n")
    assert world.companion("up", "--detach").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="read in /proc")
def test_a_detached_companion_is_hardened(world):
    """I-18: owner-only files, no core dump."""
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    process = Path("/proc") / str(world.status()["pid"])
    assert "Umask:\t0077\n" in (process / "status").read_text()
    core = re.search(r"Max core file size\s+(\S+)\s+(\S+)", (process / "limits").read_text())
    assert core.groups() == ("0", "0")
