"""An armed sandbox, as a command and as a product meet it: a local companion works, no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from companion_core import Companion
from companion_core.config.sections import Config, ModelConfig
from companion_core.egress.sandboxed import SandboxedEgress

pytestmark = pytest.mark.e2e

ARMED = {**os.environ, "COMPANION_SANDBOX": "1"}


def companion(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "companion_core", *arguments],
        env=ARMED, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_doctor_reports_what_is_refused_as_skipped(tmp_path: Path) -> None:
    done = companion("--state-dir", str(tmp_path / "s"), "doctor", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert done.returncode in {0, 4}
    assert "Traceback" not in done.stderr
    assert {row["status"] for row in rows} <= {"ok", "skip", "fail"}
    refused = [row for row in rows if row["reason"] == "egress_refused"]
    assert all(row["status"] == "skip" for row in refused)


def test_what_leads_out_is_refused_with_its_reason(tmp_path: Path) -> None:
    done = companion(
        "--state-dir", str(tmp_path / "s"), "models", "add", "https://models.example.org/a.gguf"
    )
    assert done.returncode == 4
    assert "egress_refused" in done.stderr


def test_a_product_gets_the_same_doorway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPANION_SANDBOX", "1")
    opened = Companion.open(Config(model=ModelConfig(id="m")), state_dir=tmp_path / "s")
    assert isinstance(opened._egress, SandboxedEgress)
