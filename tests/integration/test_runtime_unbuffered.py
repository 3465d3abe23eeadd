"""A runtime written in Python that does not flush: what it announces is heard all the same."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.runtime.isolation.confinement import with_fresh_bytecode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


def test_a_script_that_does_not_flush_is_heard_at_once() -> None:
    with parts.machine() as machine:
        text = machine.program.read_text()
        text = text.replace(f"#!{sys.executable} -IS", f"#!{sys.executable} -S", 1)
        machine.program.write_text(text.replace(", flush=True", ""))
        soon = parts.FakeSpawner(alter=lambda plan, _: replace(plan, start_deadline_seconds=10))

        async def life() -> None:
            await machine.supervisor.start(machine.spec(spawner=soon))
            await machine.supervisor.stop()

        asyncio.run(life())
        assert machine.leftovers() == []


def test_an_embedded_server_that_does_not_flush_is_heard_at_once(tmp_path: Path) -> None:
    code = "import time; print('ready'); time.sleep(60)"
    argv = with_fresh_bytecode((sys.executable, "-I", "-c", code), tmp_path)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        try:
            readable, _, _ = select.select([child.stdout], [], [], 10)
            assert readable
        finally:
            child.kill()
