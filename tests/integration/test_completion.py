"""`companion completion` in real shells: what a person gets for a word and a tab."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.config.paths import InstancePaths

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="these shells are of other systems"),
]

BIN = Path(sys.executable).parent


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home with one model of its own, and `companion` on the path."""
    state = tmp_path / "state"
    own = InstancePaths(state).own_manifest
    own.parent.mkdir(parents=True)
    payload = base64.b64encode(json.dumps({"models": [{"id": "smollm2"}]}).encode()).decode()
    own.write_text(json.dumps({"payload": payload}))
    return {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:/usr/bin:/bin",
        "COMPANION_STATE_DIR": str(state),
        "TERM": "dumb",
    }


def script(environ: dict[str, str], shell: str, path: Path) -> Path:
    done = subprocess.run(
        [str(BIN / "companion"), "completion", shell],
        env=environ, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    path.write_text(done.stdout)
    return path


def test_bash(
    environ: dict[str, str], tmp_path: Path, require_real: Callable[[str, bool], None]
) -> None:
    require_real("bash", shutil.which("bash") is not None)
    source = script(environ, "bash", tmp_path / "companion.bash")

    def offered(*words: str) -> list[str]:
        asked = (
            f"source {source}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            '_companion_completion companion; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", asked],
            env=environ, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout.split()

    assert offered("companion", "mod") == ["models"]
    assert offered("companion", "models", "show", "smo") == ["smollm2"]
    assert offered("companion", "run", "smo") == ["smollm2"]
    assert {"--model", "--detach"} <= set(offered("companion", "up", "--"))
    assert offered("companion", "plugins", "info", "llam") == ["llamacpp"]


def test_fish(
    environ: dict[str, str], tmp_path: Path, require_real: Callable[[str, bool], None]
) -> None:
    require_real("fish", shutil.which("fish") is not None)
    source = script(environ, "fish", tmp_path / "companion.fish")

    def offered(line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {source}; complete -C '{line}'"],
            env=environ, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return [each.split("\t")[0] for each in done.stdout.splitlines()]

    assert offered("companion mod") == ["models"]
    assert offered("companion models show smo") == ["smollm2"]


def test_zsh(
    environ: dict[str, str], tmp_path: Path, require_real: Callable[[str, bool], None]
) -> None:
    """Typed into a terminal: zsh completes only what a person types."""
    require_real("zsh", shutil.which("zsh") is not None)
    script(environ, "zsh", tmp_path / "_companion")
    (tmp_path / ".zshrc").write_text(
        f"PS1='ready> '; fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D\n"
    )
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-i"],
        env=environ, stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
    ) as shell:  # fmt: skip
        os.close(inside)
        try:
            _until(terminal, "ready> ")
            os.write(terminal, b"companion models show smo\t")
            _until(terminal, "smollm2")
        finally:
            shell.kill()
    os.close(terminal)


def _until(terminal: int, text: str) -> None:
    said, deadline = "", time.monotonic() + 60
    while text not in said and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            said += os.read(terminal, 4096).decode(errors="replace")
    assert text in said, said


def test_a_shell_that_nobody_knows_is_refused(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [str(BIN / "companion"), "completion", "tcsh"],
        env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "powershell" in done.stderr


def test_powershell_gets_kind_value_and_help_of_each(environ: dict[str, str]) -> None:
    """PowerShell itself does not run here: what it would read is looked at."""
    asked = {
        "_COMPANION_COMPLETE": "powershell_complete",
        "COMP_WORDS": "companion models show smo",
        "COMP_WORD": "smo",
    }
    done = subprocess.run(
        [str(BIN / "companion")],
        env=environ | asked, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "plain\tsmollm2\t\n"
    begun = subprocess.run(
        [str(BIN / "companion")],
        env=environ | asked | {"COMP_WORDS": "companion ", "COMP_WORD": ""},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "plain\tmodels\t" in begun.stdout
    assert (
        "Register-ArgumentCompleter -Native -CommandName companion"
        in script(environ, "powershell", Path(environ["HOME"]) / "profile.ps1").read_text()
    )
