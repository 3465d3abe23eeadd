"""Hostile local clients and web pages: nothing reaches the backend that must not."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.decisions.client_key import ClientKey, key_digest
from companion_core.decisions.verdict import refuse
from companion_core.egress.live import LiveEgress
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.gateway import Gateway, GatewaySettings
from companion_core.system.secret import Secret

pytestmark = pytest.mark.security
CORPUS = json.loads((Path(__file__).parent / "data" / "requests.json").read_text(encoding="utf-8"))


async def send_raw(port: int, raw: bytes) -> list[int]:
    """Send one raw request; return every status that came back, interim ones excluded."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(raw)
        async with asyncio.timeout(30):
            while True:
                # Once something came, a short silence is the end.
                chunk = await asyncio.wait_for(reader.read(65536), 0.1 if received else None)
                if not chunk:
                    break
                received += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] ([2-5]\d\d)", received)]


KEY = "k" * 43
CLIENT = ClientKey(
    name="editor",
    digest=key_digest(KEY),
    created="2026-12-01T00:00:00Z",
    models=None,
    requests_per_minute=10_000,
    delegate=False,
)
BEARER = "Authorization: Bearer {token}"
# How a client shows who it is: in OpenAI's manner and in Anthropic's, with the session's token and
# with a key of its own.
SHOWN = [
    (BEARER, parts.TOKEN),
    ("x-api-key: {token}", parts.TOKEN),
    (BEARER, KEY),
    ("x-api-key: {token}", KEY),
]


@pytest.mark.parametrize("second_parser", [False, True])
def test_corpus_has_no_hole(second_parser: bool) -> None:
    async def replay(field: str, token: str) -> list[str]:
        problems = []
        async with parts.open_door(
            requests_per_minute=10_000, strangers_per_minute=10_000, second_parser=second_parser
        ) as door:
            door.gateway.set_clients([CLIENT])
            for case in CORPUS:
                template = case["raw_request_template"]
                if field is not BEARER and "x-api-key" in template.lower():
                    continue  # it is about the two fields beside each other
                raw = template.replace("{port}", str(door.gateway.port))
                raw = raw.replace(BEARER, field).replace("{token}", token)
                before = len(door.backend.requests)
                codes = await send_raw(door.gateway.port, raw.encode("latin-1"))
                accepted = {case["expect_status"], *case.get("also_ok", [])}
                first = codes[0] if codes else 0
                if case["name"] == "pipelined_smuggle":
                    fine = codes[:1] == [200] and all(code >= 400 for code in codes[1:])
                else:
                    fine = first in accepted
                if first >= 400 and len(door.backend.requests) != before:
                    fine = False  # a refusal does no model work
                if not fine:
                    expected = sorted(accepted)
                    problems.append(f"{field}: {case['name']}: {codes}, expected {expected}")
        return problems

    async def main() -> None:
        found = await asyncio.gather(*(replay(*shown) for shown in SHOWN))
        problems = [problem for each in found for problem in each]
        assert not problems, "\n".join(problems)

    asyncio.run(main())


def check_headers(answer: Any) -> None:
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_every_answer_carries_the_security_headers_and_no_cors() -> None:
    async def permissive(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(
            parts.answer(
                extra=b"Access-Control-Allow-Origin: *\r\nServer: x\r\nSet-Cookie: a=b\r\n"
            )
        )

    async def main() -> None:
        async with parts.open_door(permissive) as door:
            answers = [
                await door.ask(door.post()),
                await door.ask(door.get("/v1/models")),
                await door.ask(door.get("/-/health")),
                await door.ask(door.get("/props")),
                await door.ask(door.post(token="wrong")),
                await door.ask(b"\x16\x03\x01 not http\r\n\r\n"),
            ]
            assert [answer.status for answer in answers] == [200, 200, 200, 404, 401, 400]
            for answer in answers:
                check_headers(answer)
            assert "set-cookie" not in answers[0].headers

    asyncio.run(main())


def test_private_network_preflight_is_refused_without_cors() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            answer = await door.ask(
                f"OPTIONS {parts.CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{door.gateway.port}\r\n"
                "Origin: https://evil.example\r\n"
                "Access-Control-Request-Private-Network: true\r\n\r\n".encode()
            )
            assert answer.status in {403, 405}
            check_headers(answer)

    asyncio.run(main())


def test_unknown_route() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            assert (await door.ask(door.get("/anything"))).status == 404
            assert (await door.ask(door.post(path="/v1/models"))).status == 405
            put = door.post().replace(b"POST", b"PUT", 1)
            assert (await door.ask(put)).status == 405
            assert (await door.ask(door.post(path="/api/pull"))).status == 404
            assert door.backend.requests == []

    asyncio.run(main())


def test_body_limits() -> None:
    async def main() -> None:
        async with parts.open_door(max_body_bytes=1000) as door:
            too_long = door.head(
                extra="Content-Type: application/json\r\nContent-Length: 10000000000\r\n"
            )
            assert (await door.ask(f"{too_long}\r\n".encode())).status == 413
            chunked = door.head(
                extra="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            )
            endless = f"{chunked}\r\n".encode() + b"1f4\r\n" + (b"x" * 500 + b"\r\n1f4\r\n") * 9
            assert (await door.ask(endless)).status == 413
            both = door.post(extra="Transfer-Encoding: chunked\r\n")
            assert (await door.ask(both)).status == 400
            none = door.head(extra="Content-Type: application/json\r\n")
            assert (await door.ask(f"{none}\r\n".encode())).status == 411
            assert door.backend.requests == []

    asyncio.run(main())


def test_content_type_must_be_json() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            for kind in ("text/plain", "application/jsonx", "application/json, text/plain"):
                raw = door.post().replace(b"application/json", kind.encode(), 1)
                assert (await door.ask(raw)).status == 415
            encoded = door.post(extra="Content-Encoding: gzip\r\n")
            assert (await door.ask(encoded)).status == 415
            fine = door.post().replace(b"application/json", b"Application/JSON; charset=UTF-8", 1)
            assert (await door.ask(fine)).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin", "Content-Length", "Expect"])
def test_duplicate_headers(name: str) -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            raw = door.post(extra=f"{name}: x\r\n{name.lower()}: x\r\n")
            assert (await door.ask(raw)).status == 400
            assert door.backend.requests == []

    asyncio.run(main())


def test_http10_and_absolute_form_are_refused() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            old = b"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer x\r\n\r\n"
            assert (await door.ask(old)).status == 400
            absolute = door.get("http://evil.example/v1/models")
            assert (await door.ask(absolute)).status == 400

    asyncio.run(main())


def test_strangers_cannot_lock_the_owner_out() -> None:
    async def main() -> None:
        async with parts.open_door(strangers_per_minute=5) as door:
            codes = [
                (await door.ask(door.get("/v1/models", token="wrong"))).status for _ in range(8)
            ]
            assert codes == [401] * 5 + [429] * 3
            assert (await door.ask(door.get("/v1/models"))).status == 200

    asyncio.run(main())


def test_rate_limit_names_its_end_and_spares_health() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=2, clock=lambda: 1000.0) as door:
            for _ in range(3):
                assert (await door.ask(door.get("/-/health"))).status == 200
            for _ in range(2):
                assert (await door.ask(door.get("/v1/models"))).status == 200
            limited = await door.ask(door.get("/v1/models"))
            assert (limited.status, limited.headers["retry-after"]) == (429, "60")
            assert (await door.ask(door.get("/-/health"))).status == 200

    asyncio.run(main())


def test_wall_clock_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=1) as door:
            assert (await door.ask(door.get("/v1/models"))).status == 200
            monkeypatch.setattr("time.time", lambda: 4e9)
            assert (await door.ask(door.get("/v1/models"))).status == 429
            monkeypatch.setattr("time.time", lambda: 0.0)
            assert (await door.ask(door.get("/v1/models"))).status == 429

    asyncio.run(main())


def test_check_and_count_are_one_step() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=5) as door:
            answers = await asyncio.gather(*(door.ask(door.get("/v1/models")) for _ in range(20)))
            assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 15

    asyncio.run(main())


def test_slow_clients_and_too_many_are_cut_off() -> None:
    async def main() -> None:
        clock = parts.Clock()
        async with parts.open_door(
            head_seconds=10, body_seconds=10, max_connections=4, clock=clock
        ) as door:
            slow = [await door.connect() for _ in range(3)]
            slow[0].writer.write(b"GET /v1/models HT")
            slow[1].writer.write(door.post()[:-3])
            assert (await door.ask(door.get("/v1/models"))).status == 200  # after what they sent
            clock.now += 11
            assert (await slow[0].read_answer()).status == 408
            assert (await slow[1].read_answer()).status == 408
            assert await slow[2].reader.read() == b""
            clock.now += 11  # they have had the time to take their refusal
            await parts.eventually(lambda: not door.gateway.context.connections)
            for client in slow:
                await client.close()
            assert (await door.ask(door.get("/v1/models"))).status == 200

    asyncio.run(main())


def test_strangers_connections_make_room_and_the_owners_do_not() -> None:
    async def main() -> None:
        async with parts.open_door(max_connections=4) as door:
            owner = await door.connect()
            owner.writer.write(door.get("/v1/models"))
            assert (await owner.read_answer()).status == 200
            strangers = [await door.connect() for _ in range(6)]
            for early in strangers[:3]:  # the oldest ones had to go
                assert (await early.read_answer()).code == "connection_limit"
            await parts.eventually(lambda: len(door.gateway.context.connections) == 4)
            owner.writer.write(door.get("/v1/models"))
            assert (await owner.read_answer()).status == 200
            others = []
            for _ in range(3):
                others.append(await door.connect())
                others[-1].writer.write(door.get("/v1/models"))
                assert (await others[-1].read_answer()).status == 200
            refused = await door.connect()
            assert (await refused.read_answer()).code == "connection_limit"
            for client in [owner, *strangers, *others, refused]:
                await client.close()

    asyncio.run(main())


def test_expectation_is_met_only_after_the_guard() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            for token, statuses in ((parts.TOKEN, [100, 200]), ("wrong", [401])):
                raw = door.post({"model": "m"}, token=token, extra="Expect: 100-continue\r\n")
                head, _, body = raw.partition(b"\r\n\r\n")
                client = await door.connect()
                client.writer.write(head + b"\r\n\r\n")
                seen = [(await client.read_answer()).status]
                if seen == [100]:
                    client.writer.write(body)
                    seen.append((await client.read_answer()).status)
                assert seen == statuses
                await client.close()

    asyncio.run(main())


def test_upstream_request_is_built_anew() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            extra = "X-Forwarded-For: 1.2.3.4\r\nCookie: a=b\r\nTE: trailers\r\n"
            extra += f"X-Api-Key: {parts.TOKEN}\r\n"
            body = {"model": "m", "messages": [{"role": "user", "content": "h\u00e9"}], "n": 1}
            assert (await door.ask(door.post(body, extra=extra))).status == 200
            head, _, sent = door.backend.requests[0].partition(b"\r\n\r\n")
            names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:]]
            assert names == [
                b"Host",
                b"Authorization",
                b"Accept",
                b"Content-Type",
                b"Content-Length",
            ]
            assert parts.TOKEN.encode() not in head
            assert b"Bearer " + b"k" * 43 in head
            assert json.loads(sent) == body | {"model": "served"}

    asyncio.run(main())


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_malformed_backend_answers_are_not_passed_on(raw: bytes) -> None:
    async def broken(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(raw)

    async def main() -> None:
        async with parts.open_door(broken) as door:
            answer = await door.ask(door.post())
            assert (answer.status, answer.code) == (502, "upstream_failed")
            assert door.gateway.snapshot().in_flight == 0

    asyncio.run(main())


def test_backend_that_breaks_off_ends_the_answer_and_frees_the_place() -> None:
    async def breaks(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with parts.open_door(breaks, max_in_flight=1, served_model="m") as door:
            for _ in range(3):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await door.ask(door.post())
            assert door.gateway.snapshot().in_flight == 0
            assert (await door.ask(door.get("/v1/models"))).status == 200

    asyncio.run(main())


def test_bytes_after_an_answer_never_reach_the_next_client() -> None:
    async def smuggles(_backend: Any, _request: bytes, _reader: Any, writer: Any) -> None:
        writer.write(parts.answer(b"1") + parts.answer(b"smuggled"))

    async def main() -> None:
        async with parts.open_door(smuggles) as door:
            for _ in range(3):
                assert (await door.ask(door.post())).body == b"1"
            assert door.backend.connections == 3

    asyncio.run(main())


def test_short_token_and_empty_hosts_admit_nobody() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            with pytest.raises(UsageError) as raised:
                Gateway(
                    GatewaySettings(token=Secret("t" * 42), model_id="m"),
                    door.conditions,
                    egress=LiveEgress(),
                )
            assert raised.value.reason is Reason.SECRET_INVALID
            unbound = Gateway(
                GatewaySettings(token=Secret(parts.TOKEN), model_id="m"),
                door.conditions,
                egress=LiveEgress(),
            )
            assert unbound.context.policy.hosts == frozenset()
            assert not unbound.bound

    asyncio.run(main())


def test_port_is_never_shared() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            rival = Gateway(
                GatewaySettings(token=Secret(parts.TOKEN), model_id="m", port=door.gateway.port),
                door.conditions,
                egress=LiveEgress(),
            )
            with pytest.raises(EnvironmentUnavailable) as raised:
                await rival.start()
            assert raised.value.reason is Reason.LISTENER_NOT_BOUND
            listeners = [
                listener for server in door.gateway._servers for listener in server.sockets
            ]
            assert {one.getsockname()[0] for one in listeners} <= {"127.0.0.1", "::1"}
            if hasattr(socket, "SO_REUSEPORT"):
                shared = [
                    one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for one in listeners
                ]
                assert not any(shared)

    asyncio.run(main())


def test_gate_runs_before_the_backend() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            door.conditions.lifecycle_verdict = refuse(Reason.NOT_READY)
            door.conditions.resource_verdict = refuse(Reason.RAM_OVER_LIMIT)
            answer = await door.ask(door.post())
            assert (answer.status, answer.code) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1
            door.conditions.lifecycle_verdict = parts.OK
            assert (await door.ask(door.post())).code == "ram_over_limit"
            assert door.backend.requests == []

    asyncio.run(main())
