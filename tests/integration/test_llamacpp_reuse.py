"""The real llama.cpp closes a connection after a streamed answer: no request may meet the close."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import real_runtimes
import runtime_parts
import serving_parts

from companion_core.decisions.guard import HEALTH_PATH
from companion_core.decisions.rate import RateWindow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

THREADS, REQUESTS = 4, 60
HEADERS = {"Authorization": f"Bearer {serving_parts.TOKEN}", "Content-Type": "application/json"}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def ask_many(port: int, kind: str, seen: Counter[Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(REQUESTS):
        stream = kind != "mixed" or number % 2 == 0
        leaves = kind == "mixed" and number % 5 == 0
        more = {"max_tokens": 64} if leaves else {}
        body = json.dumps({**ASK, "stream": stream, **more})
        connection.request("POST", "/v1/chat/completions", body, HEADERS)
        answer = connection.getresponse()
        seen["chat", answer.status] += 1
        if leaves and answer.status == 200:
            answer.read(1)
            connection.close()
        else:
            answer.read()
    connection.close()


def check_health(port: int, close: bool, stop: threading.Event, seen: Counter[Any]) -> None:
    headers = {**HEADERS, "Connection": "close"} if close else HEADERS
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not stop.is_set():
        connection.request("GET", HEALTH_PATH, headers=headers)
        answer = connection.getresponse()
        answer.read()
        seen["health", answer.status] += 1
        stop.wait(0.002)
    connection.close()


@pytest.mark.parametrize("kind", ["streams", "mixed"])
def test_no_request_meets_a_connection_that_is_ending(
    kind: str, tmp_path: Path, require_real: Any
) -> None:
    lacking = real_runtimes.missing("llama.cpp")
    require_real(lacking or "", not lacking)
    model = runtime_parts.verified_model(real_runtimes.MODEL)
    seen: Counter[Any] = Counter()

    async def main() -> None:
        serving = real_runtimes.make_real("llama.cpp", tmp_path)
        async with serving_parts.serving_with(serving, model):
            async with asyncio.timeout(60):
                while (await serving_parts.chat(serving))[0] != 200:  # noqa: ASYNC110 - see `until`
                    await asyncio.sleep(0.02)
            gateway, stop = serving.gateway, threading.Event()
            context = gateway.context
            context.budgets = replace(context.budgets, owner=RateWindow.per_minute(10**9))
            health = [
                asyncio.ensure_future(
                    asyncio.to_thread(check_health, gateway.port, close, stop, seen)
                )
                for close in (True, False)
            ]
            try:
                async with asyncio.timeout(60):
                    await asyncio.gather(
                        *(
                            asyncio.to_thread(ask_many, gateway.port, kind, seen)
                            for _ in range(THREADS)
                        )
                    )
            finally:
                stop.set()
                await asyncio.gather(*health)

    try:
        asyncio.run(main())
    finally:
        model.close()
    assert seen.pop(("health", 200)) > 20
    assert seen == {("chat", 200): THREADS * REQUESTS}
