"""`companion demo`, as a newcomer runs it, and interrupted at every step."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-m", "companion_core", "demo"]
# The demo, which says the step of this name and goes on when its standard input ends.
HELD = """
import sys
from companion_core.cli import main, progress

step_name = sys.argv.pop(1)
say = progress.StepPrinter.__call__

def say_and_wait(printer, step):
    say(printer, step)
    if step.name == step_name:
        sys.stdin.read()

progress.StepPrinter.__call__ = say_and_wait
sys.exit(main(["demo"]))
"""
STEPS = ["hosts", "keychain", "manifest", "model", "gateway", "runtime", "available", "health",
         "guard", "question"]  # fmt: skip


@pytest.fixture
def machine(require_real):
    """A machine with an empty temporary folder, and that folder."""
    require_real("xllamacpp", importlib.util.find_spec("xllamacpp") is not None)
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield {**os.environ, "TMPDIR": name, "HOME": name}, Path(name)


def left_behind(folder: Path, seconds: float = 30) -> tuple[list[Path], list[str]]:
    deadline = time.monotonic() + seconds
    while True:
        commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        processes = [command for command in commands if str(folder) in command]
        if not processes or time.monotonic() > deadline:
            return list(folder.iterdir()), processes
        time.sleep(0.05)


def test_a_streamed_answer_and_every_step_with_its_proof(machine):
    env, folder = machine
    done = subprocess.run(DEMO, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen = [line.split()[0] for line in done.stderr.splitlines() if line]
    assert [step for step in dict.fromkeys(seen) if step in STEPS] == STEPS
    assert {"stopped", "clean"} <= set(seen)
    assert "memory" in done.stderr
    assert re.search(r"127\.0\.0\.1:\d+", done.stderr)
    assert re.search(r"localhost:\d+", done.stderr)
    answer = done.stdout.splitlines()[0]
    assert len(answer.split()) >= 5
    assert answer.rstrip().endswith((".", "!"))
    assert left_behind(folder) == ([], [])


def test_json_is_one_document(machine):
    env, _ = machine
    done = subprocess.run(
        [*DEMO, "--json"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["chunks"] > 3


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["int", "term", "hup"]
)
def test_interrupted_at_any_step_it_leaves_nothing(machine, step, number):
    env, folder = machine
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", HELD, step], env=env, text=True, **pipes) as demo:
        for line in demo.stderr:
            if line.startswith(step):
                break
        demo.send_signal(number)  # it waits: else it could be over by now
        _, err = demo.communicate(timeout=60)
    assert demo.returncode == 130, err
    assert "companion: interrupted: " in err.strip().splitlines()[-1]
    assert left_behind(folder) == ([], [])
