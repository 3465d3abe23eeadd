"""A real Ollama behind the real gateway keeps what OpenAI's clients are promised."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import real_runtimes
import runtime_parts
import serving_parts

from companion_core.decisions.gguf import parse_gguf
from companion_core.errors import CompanionError, Reason

pytestmark = pytest.mark.integration

OWN = 512  # the bundled model's context
LONG = 4096
SYSTEM = {"role": "system", "content": "answer as a pirate would, at great length and with joy"}
USER = {"role": "user", "content": "Hello"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if tools %}<tools></tools><tool_call></tool_call>{% endif %}"
)
UNKNOWN = "{% for m in messages %}[[{{ m['role'] }}]]{{ m['content'] }}{% endfor %}[[reply]]"


def stated_context(tokens: int) -> bytes:
    """As a GGUF file states it."""
    return b"llama.context_length" + struct.pack("<II", 4, tokens)


@pytest.fixture
def serve(tmp_path: Path, require_real: Any):
    """Run a check against a real Ollama whose model has this template."""
    lacking = real_runtimes.missing("Ollama")
    require_real(lacking or "", not lacking)

    def run(check: Any, template: str | None = None, context: int = OWN, **changes: Any) -> None:
        data = real_runtimes.MODEL.read_bytes()
        data = data.replace(stated_context(OWN), stated_context(context), 1)
        if template is not None:
            own = (parse_gguf(data).text("tokenizer.chat_template") or "").encode()
            data = data.replace(own, template.encode().ljust(len(own)))
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        model = runtime_parts.verified_model(path)

        async def main() -> None:
            serving = real_runtimes.make_real("Ollama", tmp_path, context_length=None, **changes)
            async with serving_parts.serving_with(serving, model), asyncio.timeout(120):
                await check(serving)

        try:
            asyncio.run(main())
        finally:
            model.close()

    return run


def long(words: int) -> dict[str, str]:
    return {"role": "user", "content": "hi " * words}


async def used(serving: Any, *messages: dict[str, str], **more: Any) -> int:
    status, answer = await serving_parts.chat(serving, messages=list(messages), **more)
    assert status == 200, answer
    return int(answer["usage"]["prompt_tokens"])


def test_the_answer_has_the_models_id_and_at_most_as_many_tokens_as_asked_for(serve) -> None:
    async def check(serving: Any) -> None:
        for limit in ("max_tokens", "max_completion_tokens"):
            body = {"messages": [USER], limit: 3, "model": "tiny"}
            status, answer = await serving_parts.post(serving, "/v1/chat/completions", body)
            assert (status, answer["model"]) == (200, "tiny")
            assert answer["usage"]["completion_tokens"] == 3
        text = await asyncio.to_thread(
            serving_parts.stream, serving.gateway.port, "/v1/chat/completions", body
        )
        events = [line[6:] for line in text.replace("\r", "").split("\n") if line[:6] == "data: "]
        assert events.pop() == "[DONE]"
        assert {json.loads(event)["model"] for event in events} == {"tiny"}
        assert "companion/model" not in text
        body = {"model": "tiny", "messages": [USER], "tools": [{"type": "function"}]}
        status, answer = await serving_parts.post(serving, "/v1/chat/completions", body)
        assert status == 400
        assert "companion/model" not in json.dumps(answer)

    serve(check)


def test_a_request_has_the_whole_of_the_models_own_context(serve) -> None:
    async def check(serving: Any) -> None:
        # Longer than what Ollama takes by default.
        count = await used(serving, long(1060))
        assert 2100 < count < LONG

    serve(check, context=LONG)


def test_a_recognised_template_keeps_system_prompts_and_tools(serve) -> None:
    async def check(serving: Any) -> None:
        plain = await used(serving, USER)
        assert await used(serving, SYSTEM, USER) > plain + 20
        tool = {"type": "function", "function": {"name": "look_up", "description": "looks up"}}
        tool["function"]["parameters"] = {"type": "object", "properties": {}}
        assert await used(serving, USER, tools=[tool]) > plain + 50

    serve(check, CHATML)


def test_a_template_that_ollama_does_not_know_is_refused_at_the_start(serve) -> None:
    async def check(_serving: Any) -> None:
        raise AssertionError("it started")

    with pytest.raises(CompanionError) as caught:
        serve(check, UNKNOWN)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNSUPPORTED


TOO_LONG = [
    ("/v1/chat/completions", {"messages": [long(600)]}),
    # None of these is long by itself; Ollama drops the oldest.
    ("/v1/chat/completions", {"messages": [long(100)] * 6}),
    ("/v1/completions", {"prompt": "hi " * 600}),
    ("/v1/embeddings", {"input": "hi " * 600}),
    ("/v1/embeddings", {"input": ["hi", "hi " * 600]}),
]


def test_what_ollama_would_cut_is_refused_with_both_numbers(serve) -> None:
    async def check(serving: Any) -> None:
        for path, body in TOO_LONG:
            asked = {"model": "tiny", "max_tokens": 2, **body}
            status, answer = await serving_parts.post(serving, path, asked)
            assert status == 400, (path, answer)
            assert answer["error"]["code"] == "context_length_exceeded", path
            assert f"{OWN}" in answer["error"]["message"]
            text = await asyncio.to_thread(serving_parts.stream, serving.gateway.port, path, asked)
            assert json.loads(text)["error"]["code"] == "context_length_exceeded"
        # What is long in bytes and not in tokens passes.
        assert await used(serving, long(200)) > 300
        body = {"model": "tiny", "input": ["hi " * 200] * 3}
        assert (await serving_parts.post(serving, "/v1/embeddings", body))[0] == 200

    serve(check)
