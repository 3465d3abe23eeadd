"""`companion logs` of a real companion: what it tells while it runs, and after it has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
from runtime_parts import within

pytestmark = pytest.mark.integration


@pytest.fixture
def me(world: Any) -> Any:
    world.publish()
    world.configure()
    return world


def ask_for_another(world: Any, key: str) -> None:
    """Have the gateway refuse a request for a model that it does not serve."""
    request = urllib.request.Request(
        world.status()["gateway"]["url"] + "/chat/completions",
        data=b'{"model": "another", "messages": []}',
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    refused.value.close()
    assert refused.value.code == 404


def records(world: Any, *arguments: str) -> list[dict[str, Any]]:
    done = world.companion("logs", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_before_anything_ran_it_says_so(me: Any) -> None:
    done = me.companion("logs")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing is logged; companion up starts one" in done.stderr


def test_what_happened_is_told_by_reason_also_after_the_end(me: Any) -> None:
    assert me.companion("up", "--detach").returncode == 0
    with subprocess.Popen(
        me.argv("logs", "-f", "--json", "-n", "0"), stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        key = json.loads(me.companion("keys", "add", "editor", "--json").stdout)["key"]
        ask_for_another(me, key)
        ask_for_another(me, me.companion("token").stdout.strip())
        runtime = me.status()["runtime"]["pid"]
        os.kill(runtime, signal.SIGKILL)
        assert within(lambda: (me.status()["runtime"] or {}).get("pid") not in {None, runtime}, 60)
        assert within(lambda: me.status()["available"], 60)
        assert me.companion("down").returncode == 0
        told = records(me)
        events = [record["event"] for record in told]
        assert {"step", "runtime_ended", "runtime_restarting", "runtime_restored"} <= set(events)
        assert events[-1] == "stopped"
        refused = [record for record in told if record["event"] == "refused"]
        assert {
            (record.get("client"), record["reason"], record["count"]) for record in refused
        } == {
            ("editor", "model_not_served", 1),
            (None, "model_not_served", 1),
        }
        ended = next(record for record in told if record["event"] == "runtime_ended")
        assert ended["reason"] == "runtime_exited"
        assert all(record["at"].endswith("Z") for record in told)

        followed = [json.loads(following.stdout.readline()) for _ in told]
        assert followed == told
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130

    text = me.companion("logs", "-n", "3")
    assert len(text.stdout.splitlines()) == 3
    assert text.stdout.splitlines()[-1].endswith("stopped")
    runtime_lines = me.companion("logs", "--runtime")
    assert "loading model" in runtime_lines.stdout
    assert records(me, "--runtime")[0]["event"] == "runtime_line"


def test_a_start_that_failed_says_why(me: Any) -> None:
    me.configure(manifest={"url": "https://localhost:1/manifest.json"})
    assert me.companion("up").returncode == 4
    (ended,) = [record for record in records(me) if record["event"] == "ended"]
    assert ended["reason"] == "manifest_unavailable"
