"""What llama.cpp admits together fits together, and what does not fit is refused in words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import real_runtimes
import runtime_parts
import serving_parts

pytestmark = pytest.mark.integration

OWN = 512  # the bundled model's context
PLACES = 2  # by default


@pytest.fixture
def serve(tmp_path: Path, require_real: Any):
    """Run a check against a real llama.cpp behind the real gateway."""
    lacking = real_runtimes.missing("llama.cpp")
    require_real(lacking or "", not lacking)
    model = runtime_parts.verified_model(real_runtimes.MODEL)

    def run(check: Any, **changes: Any) -> None:
        async def main() -> None:
            serving = real_runtimes.make_real("llama.cpp", tmp_path, context_length=None, **changes)
            async with serving_parts.serving_with(serving, model):
                async with asyncio.timeout(60):
                    while (await serving_parts.chat(serving, max_tokens=1))[0] != 200:  # noqa: ASYNC110 - see `until`
                        await asyncio.sleep(0.02)
                async with asyncio.timeout(120):
                    await check(serving)

        asyncio.run(main())

    yield run
    model.close()


def prompt(tokens: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Tokens as numbers: exactly so many, and none that another request has cached."""
    return {"prompt": [3] + [100 + seed] * (tokens - 1), "ignore_eos": True, **more}


async def complete(serving: Any, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return await serving_parts.post(serving, "/v1/completions", {"model": "tiny", **body})


def test_two_that_fit_alone_fit_together(serve) -> None:
    async def check(serving: Any) -> None:
        body = {"max_tokens": 100}
        answers = await asyncio.gather(
            *(complete(serving, prompt(400, seed, **body)) for seed in range(PLACES))
        )
        assert [status for status, _ in answers] == [200, 200]
        assert [answer["usage"]["completion_tokens"] for _, answer in answers] == [100, 100]

    serve(check)


def test_of_twenty_streams_at_once_every_one_is_whole(serve) -> None:
    async def check(serving: Any) -> None:
        def stream(seed: int) -> str:
            body = {"model": "tiny", "max_tokens": 60, **prompt(400, seed)}
            return serving_parts.stream(serving.gateway.port, "/v1/completions", body)

        texts = await asyncio.gather(*(asyncio.to_thread(stream, seed) for seed in range(20)))
        assert all(text.endswith("data: [DONE]\n\n") for text in texts)
        events = [json.loads(text.split("\n\n")[-3].removeprefix("data: ")) for text in texts]
        assert [event["choices"][0]["finish_reason"] for event in events] == ["length"] * 20

    serve(check, gateway={"queue_bound": 64})


def test_what_is_longer_than_a_place_is_refused_with_both_numbers(serve) -> None:
    async def check(serving: Any) -> None:
        status, answer = await complete(serving, prompt(600, max_tokens=1))
        assert status == 400
        assert "600 tokens" in answer["error"]["message"]
        assert f"{OWN} tokens" in answer["error"]["message"]
        # An answer that reaches the end of its place is cut, and says so.
        status, answer = await complete(serving, prompt(500, max_tokens=100))
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
        assert answer["usage"]["total_tokens"] <= OWN

    serve(check)


@pytest.mark.parametrize("tokens", [OWN - 2, 300])
def test_an_embedding_may_be_as_long_as_its_place(serve, tokens: int) -> None:
    async def check(serving: Any) -> None:
        def embed(seed: int, count: int) -> Any:
            body = {"model": "tiny", "input": [3] + [100 + seed] * (count - 1)}
            return serving_parts.post(serving, "/v1/embeddings", body)

        answers = await asyncio.gather(*(embed(seed, tokens) for seed in range(PLACES)))
        assert [status for status, _ in answers] == [200, 200]

    serve(check, options={"embeddings": True})
