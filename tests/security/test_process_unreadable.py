"""Another program of the same person looks for the token in the companion's own process (I-18)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import runtime_parts as parts

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

# Each command that has a token in its memory begins with `harden_process`.
VICTIM = """
import sys
from companion_core.cli.foreground import harden_process
if sys.argv[1] == "hardened":
    harden_process()
print("ready", flush=True)
sys.stdin.read()
"""

READER = """
import sys
for name in ("mem", "environ", "maps", "auxv"):
    try:
        with open(f"/proc/{sys.argv[1]}/{name}", "rb", buffering=0) as file:
            if name != "mem":
                file.read(1)
    except PermissionError:
        continue
    print(name)
"""


@pytest.mark.parametrize("state", ["hardened", "as it began"])
def test_a_program_of_the_same_user_reads_neither_its_memory_nor_its_environment(
    state: str, require_real: Any
) -> None:
    user = parts.ORDINARY_USER if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:

        def run(program: str, argument: str, **options: Any) -> subprocess.Popen[str]:
            child = parts.run_as(
                user,
                ["-c", program, argument],
                Path(folder),
                stdout=subprocess.PIPE,
                text=True,
                **options,
            )
            require_real("a Python for an ordinary user", child is not None)
            return child

        with run(VICTIM, state, stdin=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n"
            read, _ = run(READER, str(victim.pid)).communicate(timeout=60)
            victim.communicate(timeout=60)
    # The last line is the counter-check: what the reader tries works on any other process.
    readable = read.split()
    assert readable == ([] if state == "hardened" else ["mem", "environ", "maps", "auxv"])
