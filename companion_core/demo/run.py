"""Runs the whole job on what ships in the package, on loopback, with nothing configured.

A publisher signs a manifest; one TLS host serves it and another the model. The companion
fetches and verifies the model, starts a real llama.cpp and serves it; a plain HTTP client gets
a streamed answer. All files lie in one temporary folder, which is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.client
import io
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from companion_core.authority import publisher
from companion_core.companion import Companion, Step
from companion_core.config.reader import parse_config
from companion_core.config.sections import Config
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.system.deadline import start_call
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.tls_host import TlsHost

__all__ = ["DemoReport", "run_demo"]

T = TypeVar("T")

MODEL_FILE: Final = Path(__file__).with_name("model") / "companion-tiny.gguf"
MODEL_ID: Final = "companion-tiny"
MANIFEST_PATH: Final = "/manifest.json"
QUESTION: Final = "What are you?"
ANSWER_TOKENS: Final = 96
CLIENT_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo proved.

    Attributes:
        answer: the streamed text.
        chunks: how many pieces it came in.
        first_chunk_seconds: from the request to its first piece.
        seconds: for everything, from the first step to the last.
    """

    question: str
    answer: str
    chunks: int
    first_chunk_seconds: float
    seconds: float


async def run_demo(
    egress: Egress, *, on_step: Callable[[Step], None], on_text: Callable[[str], None]
) -> DemoReport:
    """Run the main job once; leave no process and no file, also when cancelled.

    Args:
        egress: the doorway to the machine.
        on_step: told of each step and what proved it.
        on_text: given the answer piece by piece, as it streams.

    Raises:
        CompanionError: the step that refused, by its reason.
    """
    begun = time.monotonic()
    try:
        folder = Path(tempfile.mkdtemp(prefix="companion-demo-"))
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
    try:
        authority = CertificateAuthority(folder)
        with (
            TlsHost(authority.server_context("127.0.0.1"), {}) as model_host,
            TlsHost(authority.server_context("localhost"), {}, name="localhost") as manifest_host,
        ):
            public_key = _publish(folder / "publisher", model_host, manifest_host, on_step)
            config = _configure(manifest_host, public_key, authority.ca_file)
            async with Companion.open(
                config, state_dir=folder / "state", egress=egress, on_step=on_step
            ) as companion:
                client = _Client(egress, companion)
                await _prove_gateway(client, on_step)
                on_step(Step("question", QUESTION))
                answer, chunks, first = await client.stream_answer(on_text)
                on_text("\n")
                runtime = companion.status().runtime
        if runtime is not None and egress.identify(runtime.pid) is not None:
            raise EnvironmentUnavailable(Reason.STALE_RUNTIME)
        on_step(Step("stopped", "drained; the runtime's whole process tree is gone"))
    finally:
        shutil.rmtree(folder)
    on_step(Step("clean", "no process and no file is left"))
    return DemoReport(QUESTION, answer, chunks, first, time.monotonic() - begun)


def _publish(
    folder: Path, model_host: TlsHost, manifest_host: TlsHost, on_step: Callable[[Step], None]
) -> str:
    """Play the publisher: sign a manifest, put it and the model on their hosts, return the key."""
    content = MODEL_FILE.read_bytes()
    model_host.content = {f"/{MODEL_FILE.name}": content}
    key_file = folder.with_name("publisher.key")
    public_key = publisher.init_draft(folder, key_file)
    publisher.add_file(
        folder,
        publisher.measure(io.BytesIO(content).readinto),
        model_id=MODEL_ID,
        url=model_host.url(f"/{MODEL_FILE.name}"),
        model_format="gguf",
        licence="Apache-2.0",
    )
    signed = publisher.sign_draft(
        folder, key_file, lifetime=dt.timedelta(days=1), now=dt.datetime.now(dt.UTC)
    )
    manifest_host.content = {MANIFEST_PATH: signed.path.read_bytes()}
    on_step(Step("hosts", f"model at {model_host.url()}"))
    on_step(Step("hosts", f"manifest at {manifest_host.url()}, signed with Ed25519"))
    return public_key


def _configure(manifest_host: TlsHost, public_key: str, ca_file: Path) -> Config:
    return parse_config(
        {
            "manifest": {"url": manifest_host.url(MANIFEST_PATH), "trusted_keys": [public_key]},
            "model": {"id": MODEL_ID},
            "runtime": {"name": "llamacpp", "binary": "embedded"},
            "keychain": {"name": "memory"},
            "network": {"extra_ca_file": str(ca_file)},
        }
    )


class _Client:
    """An ordinary program on this machine: plain HTTP, and the session's token."""

    def __init__(self, egress: Egress, companion: Companion) -> None:
        self._egress = egress
        self._port = int(companion.base_url.rsplit(":", 1)[1].split("/", 1)[0])
        self._token = companion.token

    async def status_of(self, path: str, headers: dict[str, str]) -> int:
        """Return the status that the gateway answers a GET with."""

        def ask(connection: http.client.HTTPConnection) -> int:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

        return await self._with_connection(ask)

    async def stream_answer(self, on_text: Callable[[str], None]) -> tuple[str, int, float]:
        """Ask the demo's question; return the answer, its pieces and the time to the first."""
        body = {
            "model": MODEL_ID,
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
        }
        headers = {"Content-Type": "application/json", **self.authorization}

        def ask(connection: http.client.HTTPConnection) -> tuple[str, int, float]:
            begun = time.monotonic()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise EnvironmentUnavailable(Reason.UPSTREAM_FAILED)
            pieces: list[str] = []
            first = 0.0
            for text in _texts(answer):
                first = first or time.monotonic() - begun
                pieces.append(text)
                on_text(text)
            return "".join(pieces), len(pieces), first

        return await self._with_connection(ask)

    @property
    def authorization(self) -> dict[str, str]:
        """The header that every request needs."""
        return {"Authorization": f"Bearer {self._token}"}

    async def _with_connection(self, ask: Callable[[http.client.HTTPConnection], T]) -> T:
        """Run a blocking exchange; a cancellation ends it by hanging up."""
        connection = self._egress.connect_loopback(self._port, timeout=CLIENT_TIMEOUT_SECONDS)
        work = asyncio.wrap_future(start_call(ask, connection))

        def close(work: asyncio.Future[T]) -> None:
            connection.close()
            if not work.cancelled():
                work.exception()  # marks it as seen, in case nothing awaits it any more

        work.add_done_callback(close)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # Shut down, not closed: the worker still reads from it, and another socket could
            # get a closed descriptor's number.
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            raise


def _texts(answer: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the text of each server-sent event (OpenAI's streaming form)."""
    for line in answer:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        event: dict[str, Any] = json.loads(line[len(b"data: ") :])
        for choice in event.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                yield text


async def _prove_gateway(client: _Client, on_step: Callable[[Step], None]) -> None:
    """Prove that the gateway serves the token's owner, and refuses a stranger and a web page."""
    healthy = await client.status_of("/-/health", client.authorization)
    if healthy != http.HTTPStatus.OK:
        raise EnvironmentUnavailable(Reason.HEALTH_FAILED)
    on_step(Step("health", f"{healthy} through the gateway, with the token"))
    stranger = await client.status_of("/v1/models", {})
    page = await client.status_of(
        "/v1/models", {**client.authorization, "Origin": "https://example.org"}
    )
    if stranger < http.HTTPStatus.BAD_REQUEST or page < http.HTTPStatus.BAD_REQUEST:
        raise EnvironmentUnavailable(Reason.BACKEND_OPEN)
    on_step(Step("guard", f"{stranger} without the token, {page} for a web page that has it"))
