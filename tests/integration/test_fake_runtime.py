"""The fake runtime answers like a chat server."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from companion_core.testing import write_fake_runtime
from companion_core.testing.fake_runtime import KEY_ENV, READY

pytestmark = pytest.mark.integration


@pytest.fixture
def ask() -> Iterator[Callable[..., bytes]]:
    """Ask a running fake runtime; returns the body of its answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = write_fake_runtime(folder / "runtime")
        (folder / "model").write_bytes(b"GGUF")
        address = str(folder / "s")
        with subprocess.Popen(
            [program, str(folder / "model"), address],
            cwd=folder,
            env={KEY_ENV: "k"},
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                assert child.stdout.readline() == "started\n"
                said, at, key = child.stdout.readline().rsplit(maxsplit=2)
                assert (said, key) == (READY, "k")
                assert 0 < time.monotonic() - float(at) < 60
                assert (folder / "model.seen").read_bytes() == b"GGUF"
                yield lambda head, body=b"": exchange(address, head, body)
            finally:
                child.terminate()


def exchange(address: str, head: str, body: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(address)
        client.sendall(f"{head} HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return answer.partition(b"\r\n\r\n")[2]


def test_a_runtime_that_says_back_what_it_is_told(ask: Callable[..., bytes]):
    question = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}]}
    assert json.loads(ask("GET /health")) == {"status": "ok"}
    whole = json.loads(ask("POST /v1/chat/completions", json.dumps(question).encode()))
    assert whole["choices"][0]["message"]["content"] == "You said: hello there"
    question["stream"] = True
    events = ask("POST /v1/chat/completions", json.dumps(question).encode()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    said = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert said == "You said: hello there"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
