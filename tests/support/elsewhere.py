"""A person's own environment with a plugin from outside, for tests."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion_core.cli import main

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-deps", "--no-index"]


class Elsewhere:
    """A person's own environment, in which the plugin is installed; the core is shared."""

    def __init__(self, folder: Path, world: Any) -> None:
        self.world = world
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = folder / "venv" / "lib" / version / "site-packages"
        # The core's dependencies are imported from the tests' environment.
        shared = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (self.site / "shared.pth").write_text("\n".join(dict.fromkeys(shared)) + "\n")

    def pip(self, *arguments: str) -> None:
        command = [*PIP, "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, timeout=100)

    def install(self, trees: Sequence[Path], wheels: Path) -> None:
        build = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(wheels)]
        subprocess.run([*build, *map(str, trees)], check=True, timeout=200)
        built = sorted(map(str, wheels.glob("*.whl")))
        assert len(built) == len(trees)
        self.pip("install", *OFFLINE, *built)

    def companion(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *self.world.argv(*arguments)[1:]],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def plugin(self, name: str) -> dict[str, Any]:
        rows = json.loads(self.companion("plugins", "list", "--json").stdout)["plugins"]
        return next(row for row in rows if row["name"] == name)


def build(elsewhere: Elsewhere, folder: Path) -> Path:
    """Return the wheel of a new runtime plugin that is embedded."""
    assert main(["plugins", "new", "runtime", "echo", "--into", str(folder)]) == 0
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(folder / "companion-runtime-echo")], check=True, timeout=200)
    elsewhere.world.publish()
    elsewhere.world.configure(runtime={"name": "echo", "threads": 1})
    (wheel,) = folder.glob("*.whl")
    return wheel
