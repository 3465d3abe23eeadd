"""One person's machine with a model of their own, and the same llama.cpp started by hand.

By hand means: the library of the plugin's extra, or a `llama-server`, given the model and an
address and nothing else, outside every confinement.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["ENVIRONMENT", "MODEL_ID", "Machine", "Served", "by_hand", "machine", "model_file"]

ROOT: Final = Path(__file__).resolve().parents[1]
MODEL_ID: Final = "own"
_SMOLLM2: Final = ROOT / ".venv" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUNDLED: Final = ROOT / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
_SECONDS: Final = 600.0
# As a person has it: with byte code kept between two commands.
ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
}
# Everything is llama.cpp's own default, but for the address.
_LIBRARY: Final = """
import sys, threading, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.hostnames, parameters.port = ["127.0.0.1"], int(sys.argv[2])
server = xllamacpp.Server(parameters)
threading.Event().wait()
"""


def model_file() -> Path:
    """Return SmolLM2-135M, which `make .venv/.models` fetches, else the bundled tiny model."""
    return _SMOLLM2 if _SMOLLM2.exists() else _BUNDLED


class Served:
    """A server that answers OpenAI's requests on loopback.

    Args:
        port: of 127.0.0.1.
        model: as it calls the model.
        token: that it wants; None where it wants none.
    """

    def __init__(self, port: int, model: str, token: str | None = None) -> None:
        self._port = port
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def complete(self, prompt: str, tokens: int) -> tuple[dict[str, Any], float]:
        """Return the answer to a request for so many tokens, and the seconds that it took."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        payload = json.dumps(body).encode()
        began = time.perf_counter()
        # llama.cpp closes what idles for five seconds, so each request has a connection of its own.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", payload, self._headers)
            answer = connection.getresponse()
            content = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != http.client.OK:
            raise SystemExit(f"the server answered {answer.status}: {content[:500]!r}")
        document: dict[str, Any] = json.loads(content)
        return document, seconds


class Machine:
    """A person's own state, in which the model was added.

    Args:
        folder: holds everything.
        model: the person's file.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder = folder
        self._configuration = folder / "companion.toml"
        self.configure({})
        self._run("models", "add", str(model), "--id", MODEL_ID, "--yes")

    def configure(self, runtime: Mapping[str, Any]) -> None:
        """Write a configuration for a machine without a keychain, with these keys of [runtime]."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in runtime.items()]
        self._configuration.write_text(
            "\n".join(["[runtime]", *lines])
            + '\n[keychain]\nname = "memory"\n[models]\n'
            + f"key_file = {json.dumps(str(self._folder / 'own.pem'))}\n"
        )

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of one command."""
        root = ["--config", str(self._configuration), "--state-dir", str(self._folder / "state")]
        return [sys.executable, "-m", "companion_core", *root, *arguments]

    def up(self) -> tuple[dict[str, Any], float]:
        """Start a companion that keeps running; return its status and the seconds that it took."""
        began = time.perf_counter()
        shown = self._run("up", "--detach", "--json")
        seconds = time.perf_counter() - began
        status: dict[str, Any] = json.loads(shown)
        return status, seconds

    def client(self, status: Mapping[str, Any]) -> Served:
        """Return a client of the companion that runs."""
        port = int(status["gateway"]["url"].rpartition(":")[2].partition("/")[0])
        return Served(port, MODEL_ID, self._run("token").strip())

    def down(self) -> None:
        """Stop the companion that runs."""
        self._run("down")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            self.argv(*arguments),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env=ENVIRONMENT,
        )
        if done.returncode:
            raise SystemExit(f"companion {arguments[0]} failed: {done.stderr}")
        return done.stdout


@contextlib.contextmanager
def machine(model: Path) -> Iterator[Machine]:
    """Make the machine in a folder with a short name; on leaving, nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="own-"))
    try:
        made = Machine(folder, model)
        try:
            yield made
        finally:
            made.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def by_hand(model: Path, program: Path | None = None) -> Iterator[tuple[Served, float]]:
    """Start llama.cpp at its own defaults; yield a client, and the seconds until it was healthy.

    Args:
        model: the file.
        program: a `llama-server`; None for the library inside the plugin's extra.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    if program is None:
        argv: Sequence[str] = [sys.executable, "-I", "-c", _LIBRARY, str(model), str(port)]
    else:
        argv = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    try:
        while not _is_healthy(port):
            if process.poll() is not None or time.perf_counter() - began > _SECONDS:
                raise SystemExit("llama.cpp does not start by hand")
            time.sleep(0.002)
        yield Served(port, os.fspath(model)), time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
