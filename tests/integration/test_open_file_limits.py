"""A companion with few open files: strangers keep neither its owner nor its runtime out (I-20)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runtime_parts import wait_until
from swap_world import Client

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="reads limits in /proc"),
]

TIGHT, UNAVAILABLE = 64, 503

# Holds connections open and says nothing; each one that is closed it makes again.
STRANGER = """
import select, socket, sys, time
port, number = int(sys.argv[1]), int(sys.argv[2])
held = {}
while True:
    while len(held) < number:
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            break
        one.setblocking(False)
        held[one.fileno()] = one
    if len(sys.argv) == 3:
        print(len(held), flush=True)
        sys.argv.append("told")
    gone, _, _ = select.select(list(held.values()), [], [], 0.05)
    for one in gone:
        del held[one.fileno()]
        one.close()
"""


def limits_of(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of open files of a process."""
    line = Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1].split()
    return int(line[0]), int(line[1])


def asked_as_a_client_does(client: Client, limit: int) -> int:
    """Ask, and at the tightest limit ask again after a refusal, as often as OpenAI's clients do.

    Where there are sixteen places, a stranger that makes each lost connection anew can take the
    place of one whose request has not been read yet.
    """
    status = 0
    for _ in range(3 if limit <= TIGHT else 1):
        try:
            status, _answer = client.ask("/models")
        except OSError:  # turned away before all of the request was written
            if limit > TIGHT:
                raise
            status = UNAVAILABLE
        if status != UNAVAILABLE:
            break
        time.sleep(0.5)
    return status


def chat(client: Client, limit: int) -> str:
    """Ask for an answer once; who is turned away at the tightest limit may not get to hear why."""
    try:
        return client.chat("tiny")
    except OSError:
        if limit > TIGHT:
            raise
        return "connection_limit"


@pytest.mark.parametrize("limit", [64, 256, 1024])
def test_three_hundred_idle_strangers_keep_nobody_out(world, limit: int) -> None:
    world.publish()
    world.configure(gateway={"requests_per_minute": 6000})

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    started = world.companion("up", "--detach", preexec_fn=few)
    assert started.returncode == 0, started.stderr
    client, before = Client(world), world.status()
    assert limits_of(before["pid"]) == (limit, limit)
    port = client.url.split(":")[2].split("/")[0]
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER, port, "300"], stdout=subprocess.PIPE, text=True
    ) as stranger:
        try:
            assert stranger.stdout is not None
            stranger.stdout.readline()
            answers = [asked_as_a_client_does(client, limit) for _ in range(72)]
            assert answers == [200] * 72
            chats = [chat(client, limit) for _ in range(8)]
            kept_out = {"connection_limit"} if limit <= TIGHT else set()
            assert set(chats) <= {"ok", *kept_out}
            assert "ok" in chats
            os.kill(before["runtime"]["pid"], signal.SIGKILL)

            def serves_again() -> bool:
                now = world.status()
                return bool(now["available"]) and now["runtime"]["pid"] != before["runtime"]["pid"]

            assert wait_until(serves_again, 60)
            assert wait_until(lambda: chat(client, limit) == "ok", 30)
            assert "companion_connections" in world.companion("metrics").stdout
            assert len(list(Path(f"/proc/{before['pid']}/fd").iterdir())) < limit
        finally:
            stranger.kill()
    assert world.status()["pid"] == before["pid"]


def test_the_companion_raises_its_limit_and_what_it_starts_has_the_one_before(world) -> None:
    world.publish()
    world.configure()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    chosen = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, chosen))

    assert world.companion("up", "--detach", preexec_fn=low).returncode == 0
    status = json.loads(world.companion("status", "--json").stdout)
    assert limits_of(status["pid"]) == (chosen, chosen)
    assert limits_of(status["runtime"]["pid"])[0] == 200
    others = [process.pid for process in world.processes() if process.pid != status["pid"]]
    assert others
    assert {limits_of(pid)[0] for pid in others} == {200}
