"""The gateway between real sockets: streaming, back-pressure, its backends and real clients."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.egress.refusing import RefusingEgress
from companion_core.gateway import Backend
from companion_core.providers import UnixChannel

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize("unix", [False, True])
def test_streams_byte_for_byte_whatever_the_segments(unix: bool) -> None:
    events = [b"data: %d\n\n" % number for number in range(200)]
    wire = b"".join(map(chunk, events)) + b"0\r\n\r\n"

    async def dribble(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        step = int(json.loads(request.partition(b"\r\n\r\n")[2])["step"])
        raw = STREAM_HEAD + wire
        for start in range(0, len(raw), step):
            writer.write(raw[start : start + step])
            if step < 10:
                await asyncio.sleep(0)

    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(dribble, unix=unix, clock=clock) as door:
            client = await door.connect()
            for step in (1, 7, 100_000):
                clock.now += 1  # by then a backend that ends its connections would have done so
                client.writer.write(door.post({"model": "m", "step": step}))
                answer = await client.read_answer()
                assert answer.body == wire
                assert answer.headers["content-type"] == "text/event-stream"
            await client.close()
            assert door.backend.connections == 1

    asyncio.run(main())


def test_events_are_passed_on_while_the_backend_still_works() -> None:
    async def one_event(backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await backend.release.wait()
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with parts.open_door(one_event) as door:
            client = await door.connect()
            client.writer.write(door.post())
            await client.reader.readuntil(b"data: 1\n\n")
            assert door.gateway.snapshot().in_flight == 1
            door.backend.release.set()
            await client.reader.readuntil(b"0\r\n\r\n")
            await client.close()

    asyncio.run(main())


def test_an_answer_that_ends_with_the_connection() -> None:
    async def until_close(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end")
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with parts.open_door(until_close) as door:
            answer = await door.ask(door.post())
            assert (answer.body, answer.headers["connection"]) == (b"to the end", "close")

    asyncio.run(main())


def test_a_client_that_leaves_stops_its_backend_request() -> None:
    async def endless(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk(b"x"))
            await writer.drain()
            await asyncio.sleep(0.01)

    async def main() -> None:
        async with parts.open_door(endless) as door:
            client = await door.connect()
            client.writer.write(door.post())
            await client.reader.readuntil(b"\r\nx\r\n")
            client.writer.transport.abort()
            async with asyncio.timeout(30):
                await door.backend.hung_up.wait()
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 0)

    asyncio.run(main())


def test_a_slow_reader_slows_its_backend_in_bounded_memory() -> None:
    sent = 0
    block = chunk(b"x" * 65_536)

    async def flood(backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD)
        for _ in range(1000):
            writer.write(block)
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with parts.open_door(flood) as door:
            client = await door.connect()
            client.writer.write(door.post())
            await client.reader.read(1)
            last = -1
            while sent != last:  # until nothing moves any more
                last = sent
                await asyncio.sleep(0.3)
            assert sent < 500
            (connection,) = door.gateway.context.connections
            assert connection.transport.get_write_buffer_size() < 2**20
            total = 0
            while data := await client.reader.read(2**20):
                total += len(data)
                if sent == 1000 and data.endswith(b"\r\n0\r\n\r\n"):
                    break
            assert total > 1000 * 65_536
            await client.close()

    asyncio.run(main())


def test_another_backend_takes_over_port_and_token() -> None:
    async def main() -> None:
        async with parts.open_door() as first, parts.open_door(unix=True) as second:
            client = await first.connect()
            client.writer.write(first.post())
            assert (await client.read_answer()).status == 200
            await first.gateway.drain(1)
            assert second.gateway.backend is not None
            channel = second.gateway.backend.channel
            first.gateway.attach(
                Backend(channel=channel, served_model="other", health_path="/api/version")
            )
            client.writer.write(first.post())
            assert (await client.read_answer()).status == 200
            await client.close()
            assert b'"model":"other"' in second.backend.requests[0]
            assert len(first.backend.requests) == 1

    asyncio.run(main())


def test_detach_breaks_off_what_runs() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released) as door:
            running = asyncio.create_task(door.ask(door.post()))
            await parts.eventually(lambda: len(door.backend.requests) == 1)
            door.gateway.detach()
            assert (await running).code == "upstream_failed"
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_backend_that_is_not_there_or_silent() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, first_byte_seconds=0.1) as door:
            assert (await door.ask(door.post())).code == "upstream_failed"
            door.gateway.attach(
                Backend(
                    channel=UnixChannel(path="/nonexistent"), served_model="x", health_path="/h"
                )
            )
            assert (await door.ask(door.post())).code == "upstream_failed"
            assert door.gateway.snapshot().in_flight == 0
        refusing: Any = RefusingEgress()
        async with parts.open_door(egress=refusing) as door:
            assert (await door.ask(door.post())).code == "upstream_failed"
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def echo(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(parts.answer(request.partition(b"\r\n\r\n")[2]))

    async def main() -> None:
        async with parts.open_door(echo) as door:
            client = await door.connect()
            wire = b"".join(door.post({"model": "m", "n": number}) for number in range(5))
            client.writer.write(wire + door.get("/v1/models") + door.post(token="wrong"))
            for number in range(5):
                assert json.loads((await client.read_answer()).body)["n"] == number
            assert (await client.read_answer()).status == 200
            assert (await client.read_answer()).status == 401
            await client.close()

    asyncio.run(main())


def test_small_writes_are_not_held_back() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            client = await door.connect()
            await parts.eventually(lambda: len(door.gateway.context.connections) == 1)
            (accepted,) = door.gateway.context.connections
            wire = accepted.transport.get_extra_info("socket")
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await client.close()

    asyncio.run(main())


def test_models_and_metrics() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            listed = json.loads((await door.ask(door.get("/v1/models?after=x"))).body)
            assert [model["id"] for model in listed["data"]] == ["m"]
            assert door.backend.requests == []
            await door.ask(door.post({"model": "secret prompt"}))
            await door.ask(door.get("/secret/path"))
            for path in ("/metrics", "/v1/metrics", "/-/metrics"):  # served to no network
                assert (await door.ask(door.get(path))).status == 404
            text = door.gateway.metrics_text()
            for path, reason in (
                ("/v1/models", "ok"),
                (parts.CHAT, "model_not_served"),
                ("other", "path_not_allowed"),
            ):
                labels = f'path="{path}",reason="{reason}"'
                number = 4 if path == "other" else 1
                assert f"companion_request_seconds_count{{{labels}}} {number}\n" in text
                assert f'companion_request_seconds_bucket{{{labels},le="+Inf"}} {number}\n' in text
            assert "secret" not in text

    asyncio.run(main())


def test_openai_client_streaming_and_not(require_real: Any) -> None:
    require_real("the openai package", importlib.util.find_spec("openai") is not None)
    import openai  # noqa: PLC0415 - a real part that may be missing

    def completion(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": "1", "object": kind, "created": 0, "model": "served", "choices": [choice]}

    async def model(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        if json.loads(request.partition(b"\r\n\r\n")[2]).get("stream"):
            writer.write(STREAM_HEAD)
            for word in ("Hello", " there"):
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                event = json.dumps(completion("chat.completion.chunk", choice)).encode()
                writer.write(chunk(b"data: " + event + b"\n\n"))
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            message = {"role": "assistant", "content": "Hello there"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            writer.write(parts.answer(json.dumps(completion("chat.completion", choice)).encode()))

    async def main() -> None:
        async with (
            parts.open_door(model) as door,
            openai.AsyncOpenAI(
                base_url=door.gateway.base_url, api_key=parts.TOKEN, max_retries=0
            ) as client,
        ):
            messages: Any = [{"role": "user", "content": "hi"}]
            whole = await client.chat.completions.create(model="m", messages=messages)
            assert whole.choices[0].message.content == "Hello there"
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            words = [event.choices[0].delta.content async for event in stream]
            assert words == ["Hello", " there"]
            assert [model.id async for model in client.models.list()] == ["m"]
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="other", messages=messages)
            assert missing.value.code == "model_not_served"
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="wrong").chat.completions.create(
                    model="m", messages=messages
                )

    asyncio.run(main())


def test_openais_client_loses_none_of_two_hundred_requests_at_once(require_real: Any) -> None:
    require_real("the openai package", importlib.util.find_spec("openai") is not None)
    import openai  # noqa: PLC0415 - a real part that may be missing

    async def model(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(0.02)
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "served"}
        writer.write(parts.answer(json.dumps({**body, "choices": [choice]}).encode()))

    async def main() -> None:
        async with (
            parts.open_door(model, requests_per_minute=100_000, lifetime=100) as door,
            openai.AsyncOpenAI(base_url=door.gateway.base_url, api_key=parts.TOKEN) as client,
        ):
            messages: Any = [{"role": "user", "content": "hi"}]

            async def ask() -> str:
                answer = await client.chat.completions.create(model="m", messages=messages)
                return answer.choices[0].message.content or ""

            assert await asyncio.gather(*(ask() for _ in range(200))) == ["Hello"] * 200

    asyncio.run(main())
