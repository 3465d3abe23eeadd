"""The whole path on real parts: TLS hosts, signed manifest, llama.cpp, the openai client."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from runtime_parts import wait_until

from companion_core.companion import Companion
from companion_core.testing.model_host import Misbehaviour

pytestmark = pytest.mark.integration

CLIENT = """
import openai
client = openai.OpenAI()
question = [{"role": "user", "content": "What are you?"}]
ask = client.chat.completions.create
whole = ask(model="tiny", messages=question, temperature=0, max_tokens=64)
print(whole.choices[0].message.content)
pieces = ask(
    model="tiny", messages=question, temperature=0, max_tokens=64, stream=True
)
texts = [p.choices[0].delta.content or "" for p in pieces if p.choices]
print(len([t for t in texts if t]))
print("".join(texts))
print([m.id for m in client.models.list()])
"""


def test_up_detached_exec_the_real_openai_client_and_down(world):
    world.publish()
    world.configure()
    up = world.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["available"] is True

    status = world.status()
    assert status["available"] is True
    assert status["reason"] == "ok"
    assert status["lifecycle"] == "ready"
    assert status["model"] == {
        "id": "tiny",
        "verified": True,
        "vouched_by": "publisher",
        "held": "lease",
    }
    assert status["runtime"]["channel"] == "unix"
    assert status["plugins"] == {
        "keychain": "memory",
        "spawn": "llamacpp",
        "download": "https",
        "health": "llamacpp",
        "probe": "process",
    }
    assert set(status["admission"]) == {"in_flight", "max_in_flight", "queued", "queue_bound"}

    client = world.companion("exec", "--", sys.executable, "-c", CLIENT)
    assert client.returncode == 0, client.stderr
    whole, pieces, streamed, models = client.stdout.splitlines()
    assert whole == streamed
    assert "companion" in whole.lower()
    assert int(pieces) > 3
    assert models == "['tiny']"

    token = world.companion("token").stdout.strip()
    assert len(token) >= 43
    assert token not in up.stdout + up.stderr + client.stderr
    log = (world.state / "instances" / "default" / "logs").rglob("*.log")
    assert all(token not in file.read_text(errors="replace") for file in log)

    assert world.companion("exec", "--", "sh", "-c", "exit 7").returncode == 7
    assert world.companion("exec", "--", "/nonexistent").returncode == 127

    down = world.companion("down")
    assert down.returncode == 0, down.stderr
    written = (world.state / "instances" / "default" / "logs" / "companion.log").read_text()
    lines = written.splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ companion: [a-z_ ]+\Z", each) for each in lines
    )
    assert {"step available", "stopping", "stopped"} <= {each.split(": ")[1] for each in lines}
    assert world.wait_until_alone() == []
    assert world.companion("status").returncode == 5
    assert not (world.state / "instances" / "default" / "run").exists()


def test_a_second_up_says_that_it_runs_and_the_first_goes_on(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    pid = world.status()["pid"]
    for how in ([], ["--detach"], ["--json"]):
        again = world.companion("up", *how)
        assert again.returncode == 0, again.stderr
        assert again.stderr.splitlines() == ["companion: it runs already"]
        assert str(pid) in again.stdout
    assert (world.status()["pid"], world.status()["available"]) == (pid, True)


def test_a_second_start_needs_no_download_and_hashes_again(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    asked = len(world.model_host.requests)
    assert world.companion("up", "--detach").returncode == 0
    assert len(world.model_host.requests) == asked
    assert world.status()["available"] is True


def test_embedded_in_a_product(world):
    world.publish()
    steps = []

    async def run():
        async with Companion.open(
            world.config(), state_dir=world.state, on_step=steps.append
        ) as companion:
            assert companion.availability().ok
            async with openai.AsyncOpenAI(
                base_url=companion.base_url, api_key=companion.token
            ) as client:
                answer = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": "What are you?"}],
                    temperature=0,
                    max_tokens=64,
                )
            return answer.choices[0].message.content

    assert "companion" in asyncio.run(run()).lower()
    names = [step.name for step in steps]
    assert [name for name in dict.fromkeys(names) if name != "download"] == [
        "keychain", "manifest", "model", "gateway", "runtime", "available",
    ]  # fmt: skip
    assert world.wait_until_alone() == []


def test_down_stops_an_embedded_companion_and_leaves_the_product_alone(world):
    world.publish()

    async def run():
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            down = await asyncio.to_thread(world.companion, "down", "--json")
            await companion.wait_for_stop_request()
            return down, companion.availability()

    down, verdict = asyncio.run(run())
    assert json.loads(down.stdout) == {"ok": True, "stopped": True}, down.stderr
    assert not verdict.ok
    assert world.wait_until_alone() == []
    assert world.companion("status").returncode == 5


def test_a_start_that_downloads_is_told_with_how_far_it_got(world):
    content = bytes(4_000_000)
    world.publish(content=content)
    world.configure()
    world.model_host.content = dict.fromkeys(world.model_host.content, content)
    world.model_host.misbehave = Misbehaviour(stall_after=3_500_000)
    starting = subprocess.Popen(world.argv("up"), stderr=subprocess.DEVNULL)
    try:

        def downloads():
            step = world.status().get("step")
            return step is not None and step["name"] == "download" and step["done"]

        assert wait_until(downloads, 30)
        told = world.companion("status").stdout.splitlines()
        assert told[0].startswith("starting, ")
        assert "version " in told[0]
        assert any(line.startswith("start      download ") for line in told)
    finally:
        starting.terminate()
        starting.wait(30)


def test_available_is_true_only_while_completions_succeed(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    before = world.status()
    assert before["available"] is True
    runtime = next(p for p in world.processes() if p.pid == before["runtime"]["pid"])
    runtime.kill()
    runtime.wait(30)

    def once(reached):
        """Return the first status for which this holds."""
        seen = []
        assert wait_until(lambda: seen.append(world.status()) or reached(seen[-1]), 60)
        return seen[-1]

    def replaced(status):
        return status["available"] and status["runtime"]["pid"] != before["runtime"]["pid"]

    gone = once(lambda status: not status["available"] or replaced(status))
    if not gone["available"]:
        assert gone["lifecycle"] in {"stopped", "starting"}
    # The runtime is replaced: the same port and token serve again.
    after = once(replaced)
    assert after["available"] is True
    assert after["gateway"] == before["gateway"]
    assert after["runtime"]["pid"] != before["runtime"]["pid"]
    completion = world.companion("exec", "--", sys.executable, "-c", CLIENT)
    assert completion.returncode == 0, completion.stderr


def test_foreground_announces_and_ctrl_c_drains(world):
    world.publish()
    world.configure()
    with subprocess.Popen(
        world.argv("up", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        assert json.loads(up.stdout.readline())["available"] is True
        up.send_signal(2)
        _, err = up.communicate(timeout=30)
    assert up.returncode == 130
    assert "companion: interrupted: " in err.splitlines()[-1]
    assert world.wait_until_alone() == []


def test_the_examples_run_as_they_are(world):
    examples = Path(__file__).resolve().parents[2] / "examples"
    world.publish()
    world.configure()
    env = {**os.environ, "XDG_STATE_HOME": str(world.state)}
    embedded = subprocess.run(
        [sys.executable, examples / "embed.py", world.config_file],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "companion" in embedded.stdout, embedded.stderr
    assert world.companion("up", "--detach").returncode == 0
    asked = world.companion("exec", "--", sys.executable, str(examples / "ask.py"), "What are you?")
    assert "companion" in asked.stdout, asked.stderr
