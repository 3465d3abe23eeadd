"""What a command, a kit or a plugin loads: no more than its work takes.

Each is tried in an interpreter of its own, since the tests have loaded all of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from companion_core.cli import COMMANDS

pytestmark = pytest.mark.integration


def run(code: str, *options: str) -> tuple[set[str], str]:
    """Return the modules that are loaded after `code`, and what it printed."""
    listing = "\nimport json, sys\nprint()\nprint(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, *options, "-c", code + listing],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *printed, modules = done.stdout.splitlines()
    return set(json.loads(modules)), "\n".join(printed)


def command(*arguments: str) -> str:
    return f"from companion_core.cli import main; main({list(arguments)!r})"


def test_the_help_names_every_command_and_imports_none():
    loaded, printed = run(command("--help"))
    assert not [name for name in loaded if name.endswith("_command")]
    heavy = {"asyncio", "pluggy", "cryptography", "psutil", "importlib.metadata", "ssl", "httpx2"}
    assert not loaded & heavy
    for word in ("Daily:", "Authors:", *COMMANDS):
        assert word in printed


def test_the_status_loads_only_what_asking_takes(tmp_path: Path):
    loaded, _ = run(command("--state-dir", str(tmp_path), "status"))
    heavy = {
        "asyncio", "hashlib", "httpcore2", "httpx2", "pluggy", "platformdirs", "psutil",
        "socket", "ssl", "subprocess",
        "tempfile", "tomllib", "companion_core.companion", "companion_core.providers",
    }  # fmt: skip
    assert not loaded & heavy


def test_what_waits_for_a_detached_companion_loads_nothing_of_what_serves(tmp_path: Path):
    waits = """
from companion_core.cli import detached, main
import companion_core.cli.up_command as up
def start(settings, model_id, printer):
    return {}
up.start_detached, up._announce = start, lambda *_, **__: None
"""
    loaded, _ = run(waits + f"main(['--state-dir', {str(tmp_path)!r}, 'up', '--detach'])")
    heavy = {
        "asyncio", "cryptography", "httpx2", "pluggy", "psutil", "ssl",
        "companion_core.authority", "companion_core.companion", "companion_core.gateway",
        "companion_core.plugin_host", "companion_core.runtime",
    }  # fmt: skip
    assert not loaded & heavy


def test_the_doctors_help_loads_no_check():
    loaded, printed = run(command("doctor", "--help"))
    assert not [name for name in loaded if name.startswith("companion_core.doctor")]
    assert not loaded & {"asyncio", "ssl", "psutil", "cryptography", "importlib.metadata"}
    for option in ("--repair", "--bundle", "--json"):
        assert option in printed


def test_a_models_bytes_and_a_manifest_in_a_file_do_not_load_the_http_library():
    loaded, _ = run(
        "import companion_core.companion, companion_core.authority.manifest_fetch\n"
        "import companion_core.models.https_downloader, companion_core.egress.tunnel"
    )
    assert not loaded & {"httpx2", "httpcore2", "h11", "idna", "truststore"}


def test_the_plugin_host_alone_does_not_load_the_inventorys_library():
    loaded, _ = run("import companion_core.plugin_host")
    assert "importlib.metadata" not in loaded


def test_a_survey_without_a_plugin_does_not_load_the_inventorys_library(tmp_path: Path):
    for number in range(5):
        info = tmp_path / f"other_{number}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: other-{number}\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[console_scripts]\nx = y\n")
    # `-S` keeps the editable installation of this checkout from loading the library itself.
    loaded, _ = run(
        f"import sys\nsys.path[:0] = {[path for path in sys.path if path]!r}\n"
        "from companion_core.plugin_host.survey import survey_plugins\n"
        f"assert survey_plugins(path=[{str(tmp_path)!r}]) == ()",
        "-S",
    )
    assert "importlib.metadata" not in loaded


def test_the_list_of_programs_loads_no_library_of_their_formats(tmp_path: Path):
    loaded, printed = run(command("--state-dir", str(tmp_path), "connect", "--help"))
    assert "--remove" in printed
    assert not loaded & {"ruamel.yaml", "tomlkit", "asyncio", "ssl", "httpx2"}


def test_the_conformance_kits_need_no_pytest():
    loaded, _ = run("import companion_core.testing")
    assert "pytest" not in loaded


def test_the_pytest_plugin_loads_no_heavy_module():
    loaded, _ = run("import companion_core.pytest_plugin")
    assert not loaded & {"ssl", "pluggy.hooks", "cryptography"}
