"""A frozen product never starts itself, and a Python that it names runs what is started.

`sys.frozen` and `sys.executable` are what PyInstaller sets; `test_frozen.py` has the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import ask_interpreter, search_packages_of

pytestmark = pytest.mark.integration

PRODUCT = """
import asyncio, sys
config, state, product, interpreter = sys.argv[1:]
sys.frozen, sys.executable = True, product
import openai
from companion_core import Companion, CompanionError

async def main():
    try:
        companion = Companion.open(config, state_dir=state, interpreter=interpreter or None)
        async with companion:
            answer = await companion.http_client().get("/models")
            print(answer.json()["data"][0]["id"])
    except CompanionError as error:
        print(error.reason, error.detail)

asyncio.run(main())
"""


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A program that notes that it was started."""
    program = tmp_path / "product"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/started\nexit 3\n')
    program.chmod(0o755)
    return program


def run(world, product: Path, interpreter: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT, world.config_file, world.state, product, interpreter],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.stdout.strip()


def test_a_frozen_product_is_not_started_again_and_is_told_what_to_name(world, product) -> None:
    world.publish()
    world.configure()
    assert run(world, product).startswith("interpreter_missing")
    assert not (product.parent / "started").exists()
    assert world.wait_until_alone() == []


def test_an_interpreter_that_is_named_runs_what_is_started(world, product) -> None:
    world.publish()
    world.configure()
    assert run(world, product, sys.executable) == "tiny"
    world.configure(runtime={"interpreter": sys.executable})
    assert run(world, product) == "tiny"
    assert not (product.parent / "started").exists()
    assert world.wait_until_alone() == []


def test_the_product_itself_and_no_python_are_refused_as_an_interpreter(
    world, product, tmp_path
) -> None:
    world.publish()
    world.configure()
    for name in (str(product), str(tmp_path / "none"), "/bin/sh"):
        assert run(world, product, name).startswith("interpreter_missing ")
    assert run(world, product, "python3").startswith("configuration_invalid ")
    link = tmp_path / "python3"
    link.symlink_to(product)
    assert run(world, product, str(link)).startswith("interpreter_missing ")
    assert not (tmp_path / "started").exists()


def test_an_interpreter_that_others_can_replace_is_refused(world, product, tmp_path) -> None:
    world.publish()
    world.configure()
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    assert run(world, product, str(program)).startswith("runtime_unsafe ")


def test_a_program_that_only_has_the_name_of_a_python_is_refused(tmp_path: Path) -> None:
    answers = {
        "python3": "exit 1",
        "python3.9": "echo '[[3, 9], [], []]'",
        "python3.12": "echo '[3, [], []]'",
        "python3.13": "echo '[[3, 13], [5], []]'",
    }
    for name, script in answers.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(CompanionError) as caught:
            ask_interpreter(LiveEgress(), str(program))
        assert caught.value.reason is Reason.INTERPRETER_MISSING
        assert str(program) in caught.value.detail


def test_the_libraries_that_a_frozen_product_carries_are_not_those_of_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, seen = tmp_path / "python3", tmp_path / "seen"
    program.write_text(f'#!/bin/sh\nenv > {seen}\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/carried")
    monkeypatch.setenv("PYTHONHOME", "/carried")
    monkeypatch.setenv("_MEIPASS2", "/carried")
    assert ask_interpreter(LiveEgress(), str(program)).program == str(program)
    assert "/carried" not in seen.read_text()


def test_what_is_installed_for_the_interpreter_is_found_after_the_products_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.EnvBuilder(with_pip=False).create(tmp_path / "runtime")
    python = tmp_path / "runtime" / "bin" / "python"
    (site,) = (tmp_path / "runtime" / "lib").glob("python*/site-packages")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    found = ask_interpreter(LiveEgress(), str(python))
    search_packages_of(found)
    assert sys.path == before  # nothing is installed there yet
    (site / "lamp-1.dist-info").mkdir()
    search_packages_of(found)
    search_packages_of(found)
    assert sys.path == [*before, os.path.realpath(site)]
    assert str(tmp_path / "runtime") in found.folders
