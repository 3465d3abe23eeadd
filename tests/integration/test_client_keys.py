"""Keys of programs: at the gateway, and as `companion keys` makes, lists and revokes them."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from typing import Any

import gateway_parts as parts
import pytest

from companion_core.decisions.client_key import ClientKey, key_digest
from companion_core.errors import Reason

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

KEY = "c" * 43
OTHER = "o" * 43


def stored(name: str, secret: str, **changes: Any) -> ClientKey:
    known: dict[str, Any] = {
        "name": name,
        "digest": key_digest(secret),
        "created": "2026-12-01T00:00:00Z",
        "models": None,
        "requests_per_minute": None,
        "delegate": False,
    }
    return ClientKey(**{**known, **changes})


def test_a_key_opens_the_door_until_it_is_revoked() -> None:
    async def main() -> None:
        async with parts.open_door() as door:
            asked = door.get("/v1/models", token=KEY)
            assert (await door.ask(asked)).status == 401
            door.gateway.set_clients([stored("zed", KEY)])
            assert (await door.ask(asked)).status == 200
            assert (await door.ask(door.get("/v1/models"))).status == 200
            assert (await door.ask(door.post(token=KEY))).status == 200
            assert (await door.ask(door.get("/v1/models", token=KEY + "x"))).status == 401
            assert KEY.encode() not in door.backend.requests[-1]
            door.gateway.set_clients([stored("llm", OTHER)])
            assert (await door.ask(asked)).status == 401
            assert (await door.ask(door.get("/v1/models", token=OTHER))).status == 200

    asyncio.run(main())


def test_what_runs_with_a_revoked_key_ends_and_nothing_else_does() -> None:
    async def main() -> None:
        async with parts.open_door(parts.answer_when_released, max_in_flight=2) as door:
            keys = [stored("zed", KEY), stored("llm", OTHER)]
            door.gateway.set_clients(keys)
            ended, kept = await door.connect(), await door.connect()
            ended.writer.write(door.post(token=KEY))
            kept.writer.write(door.post(token=OTHER))
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 2)
            door.gateway.set_clients(keys[1:])
            assert await ended.reader.read() == b""
            await parts.eventually(lambda: door.gateway.snapshot().in_flight == 1)
            door.backend.release.set()
            assert (await kept.read_answer()).status == 200
            await kept.close()
            await ended.close()

    asyncio.run(main())


def test_each_key_has_its_own_budget_its_models_and_its_row() -> None:
    async def main() -> None:
        async with parts.open_door(requests_per_minute=3) as door:
            door.gateway.set_clients(
                [
                    stored("zed", KEY, requests_per_minute=1),
                    stored("llm", OTHER, models=("another",)),
                ]
            )
            asked = [door.get("/v1/models", token=token) for token in (KEY, KEY, parts.TOKEN)]
            assert [(await door.ask(raw)).status for raw in asked] == [200, 429, 200]
            refused = await door.ask(door.post(token=OTHER))
            assert (refused.status, refused.code) == (404, Reason.MODEL_NOT_SERVED)
            text = door.gateway.metrics_text()
            for row in (
                'client="zed",reason="ok"} 1',
                'client="zed",reason="rate_limited"} 1',
                'client="llm",reason="model_not_served"} 1',
            ):
                assert f"companion_client_answers_total{{{row}\n" in text
            assert set(door.gateway.clients_last_used()) == {"zed", "llm"}
            assert (await door.ask(door.get("/v1/models", token="x" * 43))).status == 401
            assert door.gateway.refusals_by_client() == {
                ("zed", Reason.RATE_LIMITED): 1,
                ("llm", Reason.MODEL_NOT_SERVED): 1,
                ("", Reason.INVALID_TOKEN): 1,
            }
            assert KEY not in text

    asyncio.run(main())


# --- the command ---


def ask(world: Any, *arguments: str, code: int = 0) -> dict[str, Any]:
    done: subprocess.CompletedProcess[str] = world.companion("keys", *arguments, "--json")
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def body_of(world: Any, key: str) -> bytes:
    url = f"{world.status()['gateway']['url']}/models"
    request = urllib.request.Request(url, headers={"x-api-key": key})
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def status_of(world: Any, key: str) -> int:
    try:
        body_of(world, key)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_a_program_keeps_its_key_and_its_address_over_restarts(world: Any) -> None:
    world.publish()
    world.configure()
    made = ask(world, "add", "zed", "--models", "tiny", "--rpm", "50")
    assert made["name"] == "zed"
    key = made["key"]
    assert world.companion("up", "--detach").returncode == 0
    address = world.status()["gateway"]["url"]
    assert status_of(world, key) == 200
    [listed] = json.loads(body_of(world, key))["data"]
    assert listed["context_length"] == listed["max_model_len"] > 0
    assert (listed["modalities"], listed["state"]) == (["text"], "ready")
    later = ask(world, "add", "llm")["key"]
    assert status_of(world, later) == 200
    [zed, llm] = ask(world, "list")["keys"]
    assert (zed["name"], zed["models"], zed["requests_per_minute"]) == ("zed", ["tiny"], 50)
    assert zed["last_used"] >= zed["created"]
    assert llm["delegate"] is False
    ask(world, "revoke", "llm")
    assert status_of(world, later) == 401
    assert world.companion("down").returncode == 0
    assert world.companion("up", "--detach").returncode == 0
    assert world.status()["gateway"]["url"] == address
    assert status_of(world, key) == 200
    assert world.companion("down").returncode == 0
    assert ask(world, "list")["keys"][0]["last_used"] >= zed["last_used"]
    folder = world.state / "instances" / "default" / "clients"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert key not in file.read_text()


def test_a_port_that_somebody_took_is_told_and_replaced(world: Any) -> None:
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    port = int(world.status()["gateway"]["url"].rpartition(":")[2].removesuffix("/v1"))
    assert world.companion("down").returncode == 0
    with socket.create_server(("127.0.0.1", port)):
        up = world.companion("up", "--detach")
        assert up.returncode == 0
        assert f"no longer on port {port}, which is taken" in up.stderr
    assert f":{port}/" not in world.status()["gateway"]["url"]


def test_a_damaged_list_opens_nothing_and_the_advice_leads_out(world: Any) -> None:
    world.publish()
    world.configure()
    key = ask(world, "add", "zed")["key"]
    file = world.state / "instances" / "default" / "clients" / "keys.json"
    file.write_bytes(b"{}")
    refused = ask(world, "list", code=3)
    assert refused["reason"] == Reason.CLIENT_KEYS_DAMAGED
    assert "companion keys revoke --all" in refused["advice"]
    up = world.companion("up", "--detach")
    assert up.returncode == 0
    assert "no client key opens anything" in up.stderr
    assert status_of(world, key) == 401
    ask(world, "revoke", "--all")
    again = ask(world, "add", "zed")["key"]
    assert status_of(world, again) == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "Zed"), "a key's name is"),
        (("add", "zed", "--models", ","), "--models names no model"),
        (("add", "zed", "--models", "a b"), "cannot be a model's id"),
        (("add", "zed", "--rpm", "0"), "0 is not in the range"),
        (("revoke", "zed"), "there is no key 'zed'; there is none at all"),
        (("revoke",), "name a key, or --all"),
    ],
)
def test_wrong_usage_is_told_in_words(world: Any, arguments: tuple[str, ...], says: str) -> None:
    world.configure()
    done = world.companion("keys", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_name_is_given_once(world: Any) -> None:
    world.configure()
    shown = world.companion("keys", "add", "zed")
    assert len(shown.stdout.strip()) >= 43
    assert "it is not shown again" in shown.stderr
    taken = world.companion("keys", "add", "zed")
    assert taken.returncode == 2
    assert "companion keys revoke zed" in taken.stderr
