"""`companion metrics` on a running companion: Prometheus text, and nothing of what was said."""

import json
import re
import sys

import pytest

pytestmark = pytest.mark.integration

CLIENT = """
import openai
client = openai.OpenAI(max_retries=0)
ask = client.chat.completions.create
question = [{"role": "user", "content": "What is my secret pass phrase?"}]
ask(model="tiny", messages=question, max_tokens=4)
try:
    ask(model="another", messages=question)
except openai.NotFoundError:
    pass
"""
# The exposition format 0.0.4, one line at a time.
LABEL = r'[a-z_]+="[^"\\\n]*"'
LINE = re.compile(
    r"# (HELP|TYPE) [a-z_]+ .+"
    rf"|[a-z_]+(\{{{LABEL}(,{LABEL})*\}})? [0-9]+(\.[0-9]+)?"
)


def test_counts_and_latencies_by_path_and_reason(world):
    world.publish()
    world.configure()
    assert world.companion("metrics").returncode == 5
    assert world.companion("up", "--detach").returncode == 0
    client = world.companion("exec", "--", sys.executable, "-c", CLIENT)
    assert client.returncode == 0, client.stderr

    metrics = world.companion("metrics")
    assert metrics.returncode == 0, metrics.stderr
    text = metrics.stdout
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    chat = 'path="/v1/chat/completions",reason='
    assert f'companion_request_seconds_count{{{chat}"ok"}} 1\n' in text
    assert f'companion_request_seconds_count{{{chat}"model_not_served"}} 1\n' in text
    assert 'companion_request_seconds_bucket{path="/-/health",reason="ok",le="+Inf"} ' in text
    assert "companion_in_flight 0\n" in text
    token = world.companion("token").stdout.strip()
    for secret in (token, "pass phrase", "another", "tiny", str(world.state)):
        assert secret not in text

    document = json.loads(world.companion("metrics", "--json").stdout)
    samples = {(s["name"], *sorted(s["labels"].values())): s["value"] for s in document["samples"]}
    assert document["ok"] is True
    assert samples["companion_request_seconds_count", "/v1/chat/completions", "ok"] == 1
    assert samples[("companion_queued",)] == 0
    assert len(samples) == sum(not line.startswith("#") for line in text.splitlines())
