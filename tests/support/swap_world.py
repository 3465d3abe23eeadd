"""A person who swaps models with the real command line: what is asked, held up and looked at."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import psutil
from runtime_parts import wait_until

from companion_core.authority import publisher
from companion_core.testing.model_host import Misbehaviour

DEADLINE_SECONDS = 60

# A companion that waits for an answer, and for a silent runtime, for as long as a test may take on
# a busy machine.
PATIENT = """
from companion_core.serving import served_model, watchdog

served_model.DRAIN_SECONDS = 600
watchdog.Timing.__init__.__kwdefaults__["unresponsive_after"] = 600
"""
# Runs the command line; the second start stops at the given stage, "late" until its deadline.
HELD = (
    PATIENT
    + """
import asyncio, dataclasses, sys, time
from companion_core.models import proof as model_proof
from companion_core.runtime.start import sequence as starting

hashed, started = model_proof.Prover._hash, starting.until_serving
planned = starting.ask_for_plan
counted = dict.fromkeys(("hashing", "planning", "starting"), 0)

def later(stage):
    counted[stage] += 1
    if not (counted[stage] == 2 and stage in held):
        return False
    print("here", flush=True)
    return True

async def plan_it(*arguments, **named):
    plan = await planned(*arguments, **named)
    return dataclasses.replace(plan, start_deadline_seconds=1) if later("planning") else plan

def hash_it(*arguments):
    while later("hashing"):
        time.sleep(3600)
    return hashed(*arguments)

async def start_it(*arguments, **named):
    if later("starting"):
        await asyncio.sleep(3600)
    return await started(*arguments, **named)

model_proof.Prover._hash, starting.until_serving = hash_it, start_it
starting.ask_for_plan = plan_it
held = {"late": ["planning", "starting"]}.get(sys.argv[1], sys.argv[1:2])
sys.argv[1:2] = []
from companion_core.cli import main
sys.exit(main(sys.argv[1:]))
"""
)


def publish(world, name: str = "other", content: bytes | None = None, model_format="gguf") -> None:
    """Sign for one more model; runtimes ignore what follows a model's end."""
    signed = world.content + bytes(64) if content is None else content
    world.model_host.content[f"/{name}.gguf"] = signed
    publisher.add_file(
        world.draft,
        publisher.measure(io.BytesIO(signed).readinto),
        model_id=name,
        url=world.model_host.url(f"/{name}.gguf"),
        model_format=model_format,
    )
    world.sign()


class Client:
    """A client that learned address and token when the session began."""

    def __init__(self, world) -> None:
        self.url = world.status()["gateway"]["url"]
        self.token = world.companion("token").stdout.strip()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def chat(self, model: str, **fields: Any) -> str:
        """Return "ok" or why a question to that model was refused."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        status, answer = self.ask("/chat/completions", {**body, "max_tokens": 4, **fields})
        return "ok" if status == 200 else json.loads(answer)["error"]["code"]

    def models(self) -> list[str]:
        return [each["id"] for each in json.loads(self.ask("/models")[1])["data"]]


# Runs the command line; waits for the companion's answer for only as many seconds as given.
IMPATIENT = """
import sys
from companion_core.egress import interface as egress
egress.CONTROL_TIMEOUT_SECONDS = float(sys.argv[1])
from companion_core.cli import main
sys.exit(main(sys.argv[2:]))
"""


@contextlib.contextmanager
def swapping(world, patience: float | None = None) -> Iterator[subprocess.Popen[str]]:
    """`companion up --model other`, under way."""
    argv = world.argv("up", "--model", "other")
    if patience is not None:
        argv[1:3] = ["-c", IMPATIENT, str(patience)]
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        try:
            yield up
        finally:
            up.kill()


@contextlib.contextmanager
def stalled(world, patience: float | None = None) -> Iterator[subprocess.Popen[str]]:
    """A swap whose download has fallen silent."""
    world.model_host.misbehave = Misbehaviour(stall_after=1000)
    with swapping(world, patience) as up:
        assert wait_until(
            lambda: any(path == "/other.gguf" for path, _ in world.model_host.requests),
            DEADLINE_SECONDS,
        )
        yield up


def finish(up: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and the reason that the last line of stderr names."""
    _, err = up.communicate(timeout=DEADLINE_SECONDS)
    return up.returncode, reason_of(err)


def reason_of(err: str) -> str:
    return err.splitlines()[-1].split(": ")[1]


def facts(world) -> dict[str, Any]:
    """The facts that a failed swap must not change."""
    status = world.status()
    names = ("available", "pid", "gateway", "runtime", "model", "plugins")
    return {name: status[name] for name in names}


@contextlib.contextmanager
def stream_in_flight(world) -> Iterator[tuple[Callable[[], None], list[tuple[int, bytes]]]]:
    """Ask for a stream from a runtime that is stopped; yield what wakes it, and what came."""
    runtime = psutil.Process(world.status()["runtime"]["pid"])
    tree = [runtime, *runtime.children(recursive=True)]
    client, came = Client(world), []

    def stream() -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        with contextlib.suppress(OSError, http.client.HTTPException):
            came.append(client.ask("/chat/completions", {**body, "stream": True}))

    def go_on() -> None:
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.resume()

    for process in tree:
        process.suspend()
    thread = Thread(target=stream)
    thread.start()
    try:
        assert wait_until(lambda: world.status()["admission"]["in_flight"] == 1, DEADLINE_SECONDS)
        yield go_on, came
    finally:
        go_on()
        thread.join(DEADLINE_SECONDS)


@contextlib.contextmanager
def companion_held_at(world, stage: str = "no") -> Iterator[subprocess.Popen[str]]:
    """A patient companion in the foreground, which serves; its second start stays at a stage."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, stage, *world.argv("up", "--json")[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            assert json.loads(running.stdout.readline())["available"] is True
            yield running
        finally:
            running.kill()
