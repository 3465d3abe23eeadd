"""Clients see the model's id and OpenAI's terms, whatever the backend calls things."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.providers import Dialect

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]

SERVED = "companion/model:latest"
SAID = {"id": "1", "model": SERVED, "said": f'"model":"{SERVED}" is how I would put it: {SERVED}'}
TRANSLATED = {**SAID, "model": "m"}
EVENTS = [{"model": SERVED, "n": n} for n in range(4)]
DIALECT = Dialect(
    rename_fields=(("max_completion_tokens", "max_tokens"),),
    too_long=("input ({tokens} tokens) is too large; it may have {limit}",),
)


def go(check: Any, handler: Any, **changes: Any) -> None:
    async def main() -> None:
        async with parts.open_door(
            handler, **{"served_model": SERVED, "dialect": DIALECT, **changes}
        ) as door:
            await check(door)

    asyncio.run(main())


def answering(raw: bytes, *, step: int = 10**9, close: bool = False) -> Any:
    async def handler(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        for at in range(0, len(raw), step):
            writer.write(raw[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return handler


def plain(status: int, body: bytes, *, length: int | None = None) -> bytes:
    stated = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {stated}\r\n"
    return head.encode() + b"\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"\r\n" + framed + b"0\r\n\r\n"


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def unframed(body: bytes) -> bytes:
    payload = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        payload, body = payload + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return payload


@pytest.mark.parametrize("write", [compact, lambda value: json.dumps(value).encode()])
def test_a_whole_answer_names_the_model_as_the_client_did(write: Any) -> None:
    async def check(door: parts.Door) -> None:
        for _ in range(2):  # on a connection that is kept as well
            answer = await door.ask(door.post())
            assert answer.status == 200
            assert answer.body == write(SAID).replace(
                write(SERVED) + b', "said"', b'"m", "said"'
            ).replace(write(SERVED) + b',"said"', b'"m","said"')
            assert json.loads(answer.body) == TRANSLATED

    go(check, answering(plain(200, write(SAID))))


@pytest.mark.parametrize("step", [1, 7, 64, 10**6])
def test_a_stream_names_it_too_however_its_bytes_come(step: int) -> None:
    text = b"".join(b"data: " + compact(event) + b"\n\n" for event in EVENTS)
    cut = text.index(SERVED.encode()) + 5  # in the middle of a name
    wire = chunked(text[:cut], text[cut : cut + 1], text[cut + 1 :])

    async def check(door: parts.Door) -> None:
        for _ in range(2):
            answer = await door.ask(door.post({"model": "m", "stream": True}))
            assert unframed(answer.body) == text.replace(SERVED.encode(), b"m")
            assert answer.body.endswith(b"0\r\n\r\n")

    go(check, answering(wire, step=step))


def test_what_names_no_model_passes_byte_for_byte() -> None:
    wire = chunked(b'data: {"model', b'":"other"}\n\n', b'"model":"companion/model:lat')

    async def check(door: parts.Door) -> None:
        answer = await door.ask(door.post({"model": "m", "stream": True}))
        assert unframed(answer.body) == unframed(wire.partition(b"\r\n\r\n")[2])

    go(check, answering(wire, step=3))


def test_an_error_does_not_name_the_backends_model() -> None:
    body = compact({"error": f'registry/{SERVED} does not support "tools"'})

    async def check(door: parts.Door) -> None:
        answer = await door.ask(door.post())
        assert answer.status == 400
        assert json.loads(answer.body) == {"error": 'registry/m does not support "tools"'}

    go(check, answering(plain(400, body)))


@pytest.mark.parametrize("served", ["m", SERVED])
def test_what_is_too_long_for_the_backend_is_refused_with_both_numbers(served: str) -> None:
    body = compact(
        {"error": {"code": 500, "message": "input (542 tokens) is too large; it may have 512"}}
    )

    async def check(door: parts.Door) -> None:
        answer = await door.ask(door.post())
        assert (answer.status, answer.code) == (400, "context_length_exceeded")
        assert "542 tokens" in answer.body.decode()
        assert "512" in answer.body.decode()
        assert (await door.ask(door.get("/v1/models"))).status == 200

    go(check, answering(plain(500, body)), served_model=served)


def test_another_error_stays_what_it_is() -> None:
    body = b'{"error":"input (x tokens) is too large; it may have 512"}'

    async def check(door: parts.Door) -> None:
        answer = await door.ask(door.post())
        assert (answer.status, answer.body) == (500, body)

    go(check, answering(plain(500, body)), served_model="m")


def test_an_answer_that_ends_before_it_was_passed_on_is_refused_in_words() -> None:
    async def check(door: parts.Door) -> None:
        answer = await door.ask(door.post())
        assert (answer.status, answer.code) == (502, "upstream_failed")

    go(check, answering(plain(200, compact(SAID), length=900), close=True))


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"Max_Completion_Tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 9}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "MAX_TOKENS": 9}, {"max_tokens": 3}),
        ({"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
    ],
)
def test_a_field_reaches_the_backend_under_the_name_that_it_reads(
    sent: dict[str, Any], read: dict[str, Any]
) -> None:
    seen: list[bytes] = []

    async def handler(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        seen.append(request.partition(b"\r\n\r\n")[2])
        writer.write(parts.answer())

    async def check(door: parts.Door) -> None:
        assert (await door.ask(door.post({"model": "m", **sent}))).status == 200

    go(check, handler)
    assert json.loads(seen[0]) == {"model": SERVED, **read}


COUNTS = Dialect(cuts_at=300)


def counting(tokens: int, seen: list[dict[str, Any]], status: int = 200) -> Any:
    """A backend that says of every request that it read so many tokens."""
    body = compact({"model": SERVED, "usage": {"prompt_tokens": tokens}})

    async def handler(_backend: Any, request: bytes, _reader: Any, writer: Any) -> None:
        seen.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        writer.write(plain(status, body))

    return handler


def test_a_request_that_the_backend_would_cut_is_not_sent() -> None:
    seen: list[dict[str, Any]] = []

    async def check(door: parts.Door) -> None:
        for stream in (False, True):
            body = {"model": "m", "prompt": "x" * 200, "stream": stream}
            answer = await door.ask(door.post(body))
            assert (answer.status, answer.code) == (400, "context_length_exceeded")
            assert "300 tokens" in answer.body.decode()
        assert door.gateway.snapshot().in_flight == 0

    go(check, counting(300, seen), dialect=COUNTS)
    assert [asked["max_tokens"] for asked in seen] == [1, 1]


def test_one_that_fits_is_sent_after_it_was_counted_and_a_short_one_at_once() -> None:
    seen: list[dict[str, Any]] = []

    async def check(door: parts.Door) -> None:
        for text in ("x" * 200, "x"):
            answer = await door.ask(door.post({"model": "m", "prompt": text}))
            assert (answer.status, json.loads(answer.body)["model"]) == (200, "m")
        assert door.gateway.snapshot().in_flight == 0

    go(check, counting(299, seen), dialect=COUNTS)
    assert [asked.get("max_tokens") for asked in seen] == [1, None, None]


def test_a_count_that_fails_leaves_the_answer_to_the_request_itself() -> None:
    seen: list[dict[str, Any]] = []

    async def check(door: parts.Door) -> None:
        assert (await door.ask(door.post({"model": "m", "prompt": "x" * 200}))).status == 503

    go(check, counting(1, seen, status=503), dialect=COUNTS)
    go(check_uncounted, answering(plain(200, b"{}")), dialect=COUNTS)


async def check_uncounted(door: parts.Door) -> None:
    answer = await door.ask(door.post({"model": "m", "prompt": "x" * 200}))
    assert (answer.status, answer.code) == (502, "upstream_failed")


def test_what_was_refused_leaves_nothing_to_translate_in_a_health_check() -> None:
    async def check(door: parts.Door) -> None:
        client = await door.connect()
        client.writer.write(door.post({"model": "m", "prompt": "x" * 200, "n": 1e999}))
        assert (await client.read_answer()).status == 400
        client.writer.write(door.get("/-/health"))
        assert (await client.read_answer()).body == compact(SAID)
        await client.close()

    go(check, answering(plain(200, compact(SAID)), close=True), dialect=COUNTS)
