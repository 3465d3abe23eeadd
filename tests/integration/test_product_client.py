"""The client that a product gets: the token and the prompts reach the gateway and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from companion_core import Companion, EnvironmentUnavailable, UsageError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
QUESTION = [{"role": "user", "content": "What are you?"}]


class Proxy:
    """Listens like a proxy, notes what it is sent, and answers nothing."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.heard.append(connection.recv(65536))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def hostile(proxy, tmp_path) -> dict[str, str]:
    """An environment that leads every client elsewhere that listens to it."""
    for name in (".netrc", "_netrc"):
        netrc = tmp_path / name
        netrc.write_text("machine 127.0.0.1 login other password other\n")
        netrc.chmod(0o600)
    names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy")
    return {
        **dict.fromkeys(names, proxy.url),
        "NO_PROXY": "",
        "no_proxy": "",
        "SSL_CERT_FILE": str(tmp_path / "no.pem"),
        "SSL_CERT_DIR": str(tmp_path / "none"),
        "SSLKEYLOGFILE": str(tmp_path / "keys"),
        "NETRC": str(tmp_path / ".netrc"),
        "HOME": str(tmp_path),
    }


def apply(monkeypatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_nothing_reaches_a_proxy_of_the_environment(world, proxy, hostile, monkeypatch) -> None:
    world.publish()

    async def life() -> list[str]:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            apply(monkeypatch, hostile)
            plain, blocking = companion.http_client(), companion.sync_http_client()
            models = [(await plain.get("/models")).json()["data"][0]["id"]]
            first = await asyncio.to_thread(blocking.get, "/models")
            models.append(first.json()["data"][0]["id"])
            sdk = openai.AsyncOpenAI(
                base_url=companion.base_url,
                api_key=companion.token,
                http_client=companion.http_client(),
            )
            answer = await sdk.chat.completions.create(
                model="tiny", messages=QUESTION, temperature=0, max_tokens=64
            )
            models.append(answer.choices[0].message.content)
            sync_sdk = openai.OpenAI(
                base_url=companion.base_url,
                api_key=companion.token,
                http_client=companion.sync_http_client(),
            )
            page = await asyncio.to_thread(sync_sdk.models.list)
            models.append(page.data[0].id)
            return models

    first, second, answer, third = asyncio.run(life())
    assert (first, second, third) == ("tiny",) * 3
    assert "companion" in answer.lower()
    assert proxy.heard == []
    assert not Path(hostile["SSLKEYLOGFILE"]).exists()


def test_the_readme_as_it_stands_tells_a_proxy_nothing(world, proxy, hostile) -> None:
    """The code block of "Inside a product", run as a program."""
    world.publish()
    world.configure()
    del hostile["SSL_CERT_FILE"]  # a client that reads it would end before it sends anything
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"Inside a product:\n\n```python\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    code = block[1].replace('"companion.toml"', "config, state_dir=state")
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    program = (
        "import asyncio, sys, openai\nfrom companion_core import Companion\n"
        "config, state = sys.argv[1:]\n"
        f"async def main():\n{indented}"
        "        print([m.id for m in (await client.models.list()).data])\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, world.config_file, world.state],
        # The manifest and the model are fetched over https, by the proxy that the person has.
        env={**os.environ, **hostile, "HTTPS_PROXY": "", "https_proxy": "", "ALL_PROXY": "",
             "all_proxy": ""},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert proxy.heard == []
    assert done.stdout == "['tiny']\n", done.stderr


def test_a_client_refuses_every_other_address_and_follows_no_redirect(world, proxy) -> None:
    world.publish()

    async def life() -> None:
        async with Companion.open(world.config(), state_dir=world.state) as companion:
            client, blocking = companion.http_client(), companion.sync_http_client()
            port = httpx2.URL(companion.base_url).port
            elsewhere = (
                proxy.url,
                f"http://localhost:{port}/v1/models",
                f"https://127.0.0.1:{port}/v1/models",
                f"http://user:other@127.0.0.1:{port}/v1/models",
                f"http://127.0.0.1:{port}@127.0.0.1/v1/models",
            )
            for url in elsewhere:
                with pytest.raises(UsageError):
                    await client.get(url)
                with pytest.raises(UsageError):
                    await asyncio.to_thread(blocking.get, url)
            sdk = openai.AsyncOpenAI(
                base_url=proxy.url, api_key="-", http_client=client, max_retries=0
            )
            with pytest.raises(UsageError):
                await sdk.models.list()
            assert (client.follow_redirects, blocking.follow_redirects) == (False, False)
            assert not client._transport._pool._ssl_context.get_ca_certs()

    asyncio.run(life())
    assert proxy.heard == []


def test_the_clients_close_with_the_companion_and_not_before_running_answers(world) -> None:
    world.publish()

    async def life() -> None:
        companion = Companion.open(world.config(), state_dir=world.state)
        with pytest.raises(EnvironmentUnavailable):
            companion.http_client()
        async with companion:
            client, blocking = companion.http_client(), companion.sync_http_client()
            asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 64, "stream": True}
            async with client.stream("POST", "/chat/completions", json=asked) as answer:
                lines = answer.aiter_lines()
                first = await anext(lines)
                companion.request_stop()
                rest = [line async for line in lines if line]
            assert json.loads(first.removeprefix("data: "))["object"] == "chat.completion.chunk"
            assert rest[-1] == "data: [DONE]"
        assert client.is_closed
        assert blocking.is_closed
        with pytest.raises(EnvironmentUnavailable):
            companion.sync_http_client()

    asyncio.run(life())
