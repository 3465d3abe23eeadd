"""Streams that would be silent: comments for the client, and errors that the SDKs raise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import gateway_parts as parts
import openai
import pytest

from companion_core.gateway.http.chunked import ChunkFramer
from companion_core.gateway.http.stream_events import BEAT, error_event

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

CLIENTS = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "python"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
WORD = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
WORD += b'[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
SECONDS = 0.2


def framed(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def payload_of(body: bytes) -> bytes:
    framer = ChunkFramer(collect=True)
    assert framer.feed(body) == len(body)
    assert framer.done
    return bytes(framer.payload)


async def raw_stream(door: Any, **fields: Any) -> tuple[bytes, bytes]:
    """Ask for a stream; return the head and everything up to the last chunk."""
    client = await door.connect()
    client.writer.write(door.post({"model": "m", "stream": True, **fields}))
    head = await client.reader.readuntil(b"\r\n\r\n")
    body = b"" if b"chunked" not in head else await client.reader.readuntil(b"\r\n0\r\n\r\n")
    await client.close()
    return head, body


def beats_in(payload: bytes) -> int:
    return payload.count(b": working\n\n")


def test_a_stream_that_waits_for_its_model_gets_comments_and_then_its_answer() -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(2.2)
        writer.write(CHUNKED + framed(WORD))
        await asyncio.sleep(1.6)
        writer.write(framed(WORD, DONE) + b"0\r\n\r\n")

    async def main() -> None:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS) as door:
            head, body = await raw_stream(door)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert head.count(b"HTTP/1.1") == 1
            payload = payload_of(body)
            before, _, after = payload.partition(WORD)
            assert beats_in(before) >= 2
            assert beats_in(after) >= 1
            assert payload.replace(b": working\n\n", b"") == WORD + WORD + DONE
            # The same connection serves on; the place is free again.
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_no_comment_comes_inside_an_event_or_a_chunk() -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        whole = framed(WORD)
        writer.write(CHUNKED + whole[:20])  # within a chunk
        await asyncio.sleep(1.2)
        writer.write(whole[20:] + framed(WORD[:30]))  # within an event
        await asyncio.sleep(1.2)
        writer.write(framed(WORD[30:], DONE) + b"0\r\n\r\n")

    async def main() -> None:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS) as door:
            _, body = await raw_stream(door)
            pieces = payload_of(body).split(b"\n\n")
            events = [piece + b"\n\n" for piece in pieces if piece not in {b": working", b""}]
            assert events == [WORD, WORD, DONE]

    asyncio.run(main())


def test_a_backend_that_ends_its_stream_with_the_connection_is_framed() -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(1.2)
        writer.write(STREAM + b"Connection: close\r\n\r\n" + WORD)
        await asyncio.sleep(1.2)
        writer.write(DONE)
        writer.close()

    async def main() -> None:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS) as door:
            _, body = await raw_stream(door)
            payload = payload_of(body)
            assert beats_in(payload.partition(WORD)[2]) >= 1
            assert payload.replace(b": working\n\n", b"") == WORD + DONE

    asyncio.run(main())


def test_what_is_no_stream_or_comes_in_time_is_passed_as_it_is() -> None:
    async def main() -> None:
        async with parts.open_door(heartbeat_seconds=30) as door:
            plain = await door.ask(door.post())
            streamed = await door.ask(door.post({"model": "m", "stream": True}))
            assert (plain.status, streamed.status) == (200, 200)
            assert streamed.body == plain.body

        async def slow(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
            await asyncio.sleep(1.2)
            writer.write(parts.answer())

        async with parts.open_door(slow, heartbeat_seconds=SECONDS) as door:
            assert BEAT not in (await door.ask(door.post())).body

    asyncio.run(main())


def test_an_error_after_the_first_comment_is_an_event_that_openais_client_raises() -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(1.2)
        body = b'{"error":{"message":"no such tool","type":"invalid_request_error","code":null}}'
        writer.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    async def main() -> None:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS) as door:
            async with openai.AsyncOpenAI(
                base_url=door.gateway.base_url, api_key=parts.TOKEN, max_retries=0
            ) as client:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
                )
                with pytest.raises(openai.APIError) as caught:
                    await anext(aiter(stream))
                assert caught.value.message == "no such tool"
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["gone", "never"])
def test_a_backend_that_fails_meanwhile_is_told_in_the_stream(fault: str) -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        if fault == "never":
            await asyncio.sleep(60)
        await asyncio.sleep(1.2)
        writer.close()

    async def main() -> None:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS, first_byte_seconds=2) as door:
            head, body = await raw_stream(door)
            assert head.startswith(b"HTTP/1.1 200 OK")
            event = payload_of(body).replace(b": working\n\n", b"")
            assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
            assert door.gateway.snapshot().in_flight == 0
            text = door.gateway.metrics_text()
            assert 'reason="upstream_failed",le="+Inf"} 1' in text

    asyncio.run(main())


def test_one_that_waits_for_its_place_gets_comments_too_and_its_deadline_is_told() -> None:
    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(30)
        writer.write(parts.answer())

    async def main() -> None:
        async with parts.open_door(
            handle, heartbeat_seconds=SECONDS, max_in_flight=1, queue_deadline_seconds=2
        ) as door:
            first = await door.connect()
            first.writer.write(door.post())
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            _, body = await raw_stream(door)
            payload = payload_of(body)
            assert beats_in(payload) >= 1
            assert b'"code": "queue_deadline"' in payload
            await first.close()

    asyncio.run(main())


def test_anthropics_client_raises_it_in_its_own_form(require_real: Any) -> None:
    require_real("the anthropic package (make .venv/.clients)", CLIENTS.exists())
    program = (
        "import anthropic, sys\n"
        "client = anthropic.Anthropic(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)\n"
        "try:\n"
        "    with client.messages.stream(model='m', max_tokens=2,\n"
        "            messages=[{'role': 'user', 'content': 'Hi'}]) as stream:\n"
        "        for _ in stream.text_stream:\n"
        "            pass\n"
        "except anthropic.APIStatusError as error:\n"
        "    print(error.message)\n"
    )

    async def handle(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(1.2)
        writer.close()

    async def main() -> str:
        async with parts.open_door(handle, heartbeat_seconds=SECONDS) as door:
            with contextlib.suppress(asyncio.CancelledError):
                url = door.gateway.base_url.removesuffix("/v1")
                done = await asyncio.to_thread(
                    subprocess.run,
                    [str(CLIENTS), "-c", program, url, parts.TOKEN],
                    capture_output=True, text=True, timeout=60, check=True,
                )  # fmt: skip
            return str(done.stdout)

    said = asyncio.run(main())
    assert "runtime" in said or "overloaded" in said or "api_error" in said


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error":{"message":"no"}}', "no"),
        (b'{"error":"no"}', "no"),
        (b"no", "no"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 100_000, "[" * 100_000),
        (b"", ""),
    ],
)
def test_whatever_a_backend_says_becomes_one_event(body: bytes, told: str) -> None:
    for anthropic in (False, True):
        event = error_event(500, body, anthropic=anthropic)
        *_, data = event.removesuffix(b"\n\n").split(b"\n")
        assert event.endswith(b"\n\n")
        assert json.loads(data.removeprefix(b"data: "))["error"]["message"] == told
