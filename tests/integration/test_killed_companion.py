"""The companion is killed with SIGKILL at each stage of its life, with each real runtime (I-08).

Within two seconds nothing of it runs, and the next `up` serves; `docs/endings.md` has the table.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from runtime_parts import alive, wait_until
from swap_world import PATIENT

from companion_core.config.paths import InstancePaths
from companion_core.testing.model_host import Misbehaviour

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

GONE_SECONDS = 2

# Runs the command line and stops in the middle of the stage that it is told.
HELD = (
    PATIENT
    + """
import asyncio, sys, time
from companion_core.models import proof as model_proof
from companion_core.runtime.start import sequence as starting

def hash_for_ever(*_):
    print("here", flush=True)
    time.sleep(3600)

async def start_for_ever(*_, **__):
    print("here", flush=True)
    await asyncio.sleep(3600)

if sys.argv[1] == "hashing":
    model_proof.Prover._hash = hash_for_ever
elif sys.argv[1] == "starting":
    starting.until_serving = start_for_ever
sys.argv[1:2] = []
from companion_core.cli import main
sys.exit(main(sys.argv[1:]))
"""
)


@contextlib.contextmanager
def up(world, held_at: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """`companion up` in the foreground, perhaps held at a stage and patient."""
    argv = world.argv("up", "--json")
    if held_at is not None:
        argv = [sys.executable, "-c", HELD, held_at, *argv[3:]]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def kill_and_start_anew(
    world, running: subprocess.Popen[str], ending: signal.Signals = signal.SIGKILL
) -> str:
    """Within two seconds nothing is left; then the same command serves, and leaves nothing.

    Returns:
        What the second one printed for the person.
    """
    before = world.processes()
    assert running.pid in {process.pid for process in before}
    running.send_signal(ending)
    if ending != signal.SIGKILL:
        running.wait(60)
    assert world.wait_until_alone(seconds=GONE_SECONDS) == []
    # A process whose memory is gone has no command line any more, but has not ended yet.
    assert wait_until(lambda: not any(alive(process.pid) for process in before))
    assert world.companion("status").returncode == 5
    again = world.companion("up", "--detach")
    assert again.returncode == 0, again.stderr
    assert world.status()["available"] is True
    runs = [entry for entry in InstancePaths(world.state).run_folder().iterdir() if entry.is_dir()]
    assert len(runs) == 1  # what the killed one left was removed
    assert world.companion("down").returncode == 0
    assert world.wait_until_alone() == []
    assert not InstancePaths(world.state).runtime_record.exists()
    return again.stderr


def test_while_it_fetches_the_manifest(person) -> None:
    asked = threading.Event()
    answer = person.manifest_host.answer

    def never(_request: Any) -> None:
        asked.set()
        person.manifest_host.stopping.wait(60)

    person.manifest_host.answer = never
    with up(person) as running:
        assert asked.wait(60)
        person.manifest_host.answer = answer
        kill_and_start_anew(person, running)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_while_it_downloads_and_the_next_one_goes_on(person, ending) -> None:
    # Longer than what is received before the first of it is written; runtimes ignore the rest.
    person.content += bytes(4 * 1024 * 1024)
    person.model_host.content = dict.fromkeys(person.model_host.content, person.content)
    person.publish()
    person.model_host.misbehave = Misbehaviour(stall_after=3_000_000)
    models = InstancePaths(person.state).models
    with up(person) as running:
        assert wait_until(lambda: any(part.stat().st_size for part in models.glob("*.part")), 60)
        person.model_host.misbehave = Misbehaviour()
        told = kill_and_start_anew(person, running, ending)
    assert "tiny: goes on after " in told
    [first, second] = [headers for _, headers in person.model_host.requests]
    assert "range" not in first
    offset = int(second["range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < offset <= 3_000_000
    assert [file.read_bytes() for file in person.stored_models()] == [person.content]


@pytest.mark.parametrize("stage", ["hashing", "starting"])
def test_while_it_is_held_at_a_stage(person, stage) -> None:
    with up(person, stage) as running:
        assert running.stdout.readline() == "here\n"
        if stage == "starting":
            assert computing(person)
        kill_and_start_anew(person, running)


def test_while_it_is_ready(person) -> None:
    with up(person) as running:
        assert json.loads(running.stdout.readline())["available"] is True
        kill_and_start_anew(person, running)


@pytest.mark.parametrize("draining", [False, True], ids=["serving", "draining"])
def test_while_it_serves_a_stream(person, draining) -> None:
    with up(person, "no stage") as running, contextlib.ExitStack() as ending:
        available = json.loads(running.stdout.readline())
        # The computing process is stopped first, so that the answer cannot end before the kill.
        assert stream(available["gateway"]["url"], person.companion("token").stdout.strip())
        os.kill(computing(person)[-1].pid, signal.SIGSTOP)
        token = person.companion("token").stdout.strip()
        client = threading.Thread(target=stream, args=(available["gateway"]["url"], token))
        client.start()
        ending.callback(client.join, 60)
        assert wait_until(lambda: person.status()["admission"]["in_flight"] == 1, 60)
        if draining:
            down = subprocess.Popen(
                person.argv("down"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            ending.callback(down.wait, 60)
            assert wait_until(lambda: person.status()["lifecycle"] == "draining", 60)
        kill_and_start_anew(person, running)


def computing(world) -> list[psutil.Process]:
    """Return the runtime's processes, the computing one last (Ollama's runner)."""
    named = ("companion_runtime_llamacpp.embedded", "serve", "runner")
    found = [
        (named.index(part), process)
        for process in world.processes()
        for part in process.cmdline()
        if part in named and "bwrap" not in process.name()
    ]
    return [process for _, process in sorted(found, key=lambda each: each[0])]


def stream(url: str, token: str) -> bool:
    """Ask for a stream; return whether it came to its end."""
    host = url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host, timeout=60)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return b"[DONE]" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
