"""Clients that people use, against a real llama.cpp behind the gateway."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest
from gateway_parts import eventually, soon

from companion_core.companion import Companion

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

NODE_CLIENT = Path(__file__).parents[1] / "support" / "node_client"
NPM_SECONDS, CLIENT_SECONDS = 120, 60
QUESTION = [{"role": "user", "content": "What are you?"}]
ASK = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 64}
# An answer that goes on until the context is full: the client ends it first.
LONG = ASK | {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}

# What the runtime answers while its slot still computes for a client that has left and the
# context is full.
STILL_BUSY = openai.APIError


@pytest.fixture
def served(world):
    """Run a test's coroutine beside a companion that serves chat and embeddings."""
    world.publish()
    config = world.config(runtime={"options": {"embeddings": True}})

    def run(use):
        async def main():
            async with Companion.open(config, state_dir=world.state) as companion:
                await use(companion)
                gateway = companion._serving.gateway
                await eventually(lambda: gateway.snapshot().in_flight == 0)

        asyncio.run(main())

    return run


async def output_of(*command: str, given: str = "", **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(given.encode()), CLIENT_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{err.decode()}{out[-600:].decode()}"
    return out.decode()


def test_the_openai_client_for_python_works(served):
    async def use(companion):
        async with openai.AsyncOpenAI(
            base_url=companion.base_url, api_key=companion.token, max_retries=0
        ) as client:
            create = client.chat.completions.create
            whole = (await create(**ASK)).choices[0].message.content
            assert "companion" in whole.lower()
            pieces = [
                piece.choices[0].delta.content or ""
                async for piece in await create(**ASK, stream=True)
                if piece.choices
            ]
            assert len(pieces) > 3
            assert "".join(pieces) == whole

            vectors = await client.embeddings.create(model="tiny", input=["one", "two"])
            assert len(vectors.data) == 2
            assert len({len(row.embedding) for row in vectors.data}) == 1
            with pytest.raises(openai.NotFoundError) as missing:
                await create(**ASK | {"model": "another"})
            assert missing.value.code == "model_not_served"

            gateway = companion._serving.gateway
            for _ in range(5):  # more often than there are places
                with contextlib.suppress(STILL_BUSY):
                    async with await create(**LONG, stream=True) as stream:
                        async for _piece in stream:
                            break
                await eventually(lambda: gateway.snapshot().in_flight == 0)
            asked = asyncio.create_task(create(**LONG))
            await soon(lambda: gateway.snapshot().in_flight == 1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await eventually(lambda: gateway.snapshot().in_flight == 0)
            async with asyncio.timeout(CLIENT_SECONDS):
                while True:
                    with contextlib.suppress(STILL_BUSY):
                        assert (await create(**ASK)).choices[0].message.content
                        break
                    await asyncio.sleep(0.1)

    served(use)


def test_curl_works(served, require_real):
    require_real("curl", shutil.which("curl") is not None)

    async def use(companion):
        curl = (
            *("curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60"),
            *("--header", f"Authorization: Bearer {companion.token}"),
            *("--header", "Content-Type: application/json"),
        )

        async def ask(path: str, body: object, *options: str) -> str:
            data = ("--data-binary", "@-", *options, f"{companion.base_url}{path}")
            return await output_of(*curl, *data, given=json.dumps(body))

        async def leave(body: object) -> None:
            gateway = companion._serving.gateway
            url = f"{companion.base_url}/chat/completions"
            process = await asyncio.create_subprocess_exec(
                *(*curl, "--data-binary", json.dumps(body), url), stdout=asyncio.subprocess.DEVNULL
            )
            await soon(lambda: gateway.snapshot().in_flight == 1)
            with contextlib.suppress(ProcessLookupError):  # it was answered before it could leave
                process.kill()
            await process.wait()
            await eventually(lambda: gateway.snapshot().in_flight == 0)

        whole = json.loads(await ask("/chat/completions", ASK))
        text = whole["choices"][0]["message"]["content"]
        assert "companion" in text.lower()
        stream = await ask("/chat/completions", ASK | {"stream": True}, "--no-buffer")
        events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
        assert events[-1] == "[DONE]"
        pieces = [json.loads(event)["choices"] for event in events[:-1]]
        assert "".join(p[0]["delta"].get("content") or "" for p in pieces if p) == text
        # A body of this size makes curl ask first: Expect: 100-continue.
        long = ASK | {"user": "x" * 1_500_000}
        asked = await ask("/chat/completions", long, "--expect100-timeout", "30")
        assert json.loads(asked)["choices"][0]["message"]["content"] == text
        embedded = json.loads(await ask("/embeddings", {"model": "tiny", "input": "one"}))
        assert len(embedded["data"][0]["embedding"]) > 8
        endless = ASK | {"max_tokens": 100_000, "ignore_eos": True}
        await leave(endless)
        await leave(endless | {"stream": True})

    served(use)


@pytest.fixture
def node_client(tmp_path, require_real) -> Path:
    """The JavaScript client beside the real npm package, as its lock file pins it."""
    npm = shutil.which("npm")
    require_real("Node.js and npm", npm is not None and shutil.which("node") is not None)
    shutil.copytree(NODE_CLIENT, tmp_path, dirs_exist_ok=True)
    installed = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=tmp_path,
        capture_output=True,
        timeout=NPM_SECONDS,
        check=False,
    )
    require_real("the npm package openai", installed.returncode == 0)
    return tmp_path / "client.mjs"


def test_the_openai_client_for_javascript_works(served, node_client):
    async def use(companion):
        answer = json.loads(
            await output_of(
                "node",
                str(node_client),
                OPENAI_BASE_URL=companion.base_url,
                OPENAI_API_KEY=companion.token,
            )
        )
        assert "companion" in answer["whole"].lower()
        assert answer["streamed"] == answer["whole"]
        assert len(answer["embeddings"]) == 2
        assert answer["models"] == ["tiny"]
        assert answer["refused"] == {"status": 404, "code": "model_not_served"}
        assert answer["bare"] == 200

    served(use)
