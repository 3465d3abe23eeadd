"""Either of two fields may show the token, and both only if they agree."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import gateway_parts as parts
import pytest

pytestmark = pytest.mark.integration

TOKEN = parts.TOKEN
CLIENTS = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "python"


def get(path: str, *fields: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: {host}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((f"x-api-key: {TOKEN}",), 200),
        ((f"X-API-KEY: {TOKEN}",), 200),
        ((f"x-api-key: {TOKEN}", f"Authorization: Bearer {TOKEN}"), 200),
        ((f"x-api-key: {TOKEN}x",), 401),
        ((f"x-api-key: Bearer {TOKEN}",), 401),
        (("x-api-key:",), 401),
        ((f"x-api-key: {TOKEN}", "Authorization: Bearer other"), 401),
        (("x-api-key: other", f"Authorization: Bearer {TOKEN}"), 401),
        (("x-api-key:", f"Authorization: Bearer {TOKEN}"), 401),
        ((f"x-api-key: {TOKEN}", "Authorization:"), 401),
        ((f"x-api-key: {TOKEN}", f"Authorization: Basic {TOKEN}"), 401),
        ((f"x-api-key: {TOKEN}", f"x-api-key: {TOKEN}"), 400),
    ],
)
def test_a_token_is_shown_once_or_twice_alike(fields: tuple[str, ...], status: int) -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            host = f"127.0.0.1:{door.gateway.port}"
            raw = get("/v1/models", *fields).replace(b"{host}", host.encode())
            assert (await door.ask(raw)).status == status

    asyncio.run(main())


def test_a_failed_key_costs_the_strangers_budget_and_not_the_owners() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=2, strangers_per_minute=1) as door:
            host = f"127.0.0.1:{door.gateway.port}".encode()
            wrong = get("/v1/models", "x-api-key: wrong").replace(b"{host}", host)
            right = get("/v1/models", f"x-api-key: {TOKEN}").replace(b"{host}", host)
            answers = [(await door.ask(raw)).status for raw in (wrong, wrong, right, right, right)]
            assert answers == [401, 429, 200, 200, 429]

    asyncio.run(main())


def test_one_model_is_asked_for_by_its_id_and_a_wrong_name_is_told_the_right_one() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            one = await door.ask(door.get("/v1/models/m"))
            listed = json.loads((await door.ask(door.get("/v1/models"))).body)
            assert json.loads(one.body) == listed["data"][0]
            assert listed["data"][0]["state"] == "ready"
            assert listed["data"][0]["modalities"] == ["text"]
            assert (await door.ask(door.get("/v1/models/other"))).status == 404
            assert (await door.ask(door.get("/v1/models/m", token="wrong"))).status == 401
            refused = json.loads((await door.ask(door.post({"model": "other"}))).body)
            assert refused["error"]["message"] == "This gateway serves m; ask for that."
            door.gateway.name_model("n")
            door.gateway.detach()
            assert (await door.ask(door.get("/v1/models/m"))).status == 404

    asyncio.run(main())


def test_a_model_is_asked_for_by_its_aliases_and_answers_by_its_id() -> None:
    async def main() -> None:
        aliases = {"gpt-4o-mini": "m", "small": "m", "m": "n", "elsewhere": "n"}
        async with parts.open_door(aliases=aliases) as door:
            answer = await door.ask(door.post({"model": "gpt-4o-mini"}))
            assert answer.status == 200
            assert b'"model":"served"' in door.backend.requests[-1]
            listed = json.loads((await door.ask(door.get("/v1/models"))).body)["data"]
            assert [one["id"] for one in listed] == ["m"]
            assert listed[0]["aliases"] == ["gpt-4o-mini", "small"]
            one = await door.ask(door.get("/v1/models/gpt-4o-mini"))
            assert json.loads(one.body) == listed[0]
            refused = json.loads((await door.ask(door.post({"model": "elsewhere"}))).body)
            assert refused["error"]["message"] == (
                "This gateway serves m (also as gpt-4o-mini, small); ask for that."
            )
            assert (await door.ask(door.get("/v1/models/elsewhere"))).status == 404
            assert 'path="/v1/models/ID",reason="ok",le="+Inf"} 1' in door.gateway.metrics_text()
            door.gateway.name_model("n")
            assert (await door.ask(door.post({"model": "small"}))).status == 404

    asyncio.run(main())


def test_anthropics_client_is_let_in_by_its_own_field(require_real: Any) -> None:
    require_real("the anthropic package (make .venv/.clients)", CLIENTS.exists())
    program = (
        "import anthropic, sys\n"
        "for key in sys.argv[2:]:\n"
        "    client = anthropic.Anthropic(base_url=sys.argv[1], api_key=key, max_retries=0)\n"
        "    try:\n"
        "        print(client.models.retrieve('m').id)\n"
        "    except anthropic.AuthenticationError as error:\n"
        "        print(error.status_code)\n"
    )

    async def main() -> None:
        async with parts.open_door() as door:
            base = door.gateway.base_url.removesuffix("/v1")
            process = await asyncio.create_subprocess_exec(
                *(str(CLIENTS), "-c", program, base, TOKEN, "wrong"),
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
            )
            told, _ = await asyncio.wait_for(process.communicate(), 60)
            assert told.decode().split() == ["m", "401"]

    asyncio.run(main())
