"""Starts without a network, and the way back from a clock that was wrong, on the whole path."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from companion_core.authority.current_manifest import CurrentManifest, current_manifest
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import REASONS, CompanionError, Reason
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.integration

PUBLISHER = FakePublisher()

DAYS_AHEAD = """
import sys
from companion_core.system import clock
now = clock.wall_now
clock.wall_now = lambda days=float(sys.argv.pop(1)): now() + days * 86400
from companion_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def up(world, *, days_ahead: float = 0) -> subprocess.CompletedProcess[str]:
    """`companion up --detach --json`, by a clock that is so many days ahead."""
    argv = world.argv("up", "--detach", "--json")
    if days_ahead:
        # Detached, the child would have the right clock; a refusal comes from either.
        argv = [sys.executable, "-c", DAYS_AHEAD, str(days_ahead), *world.argv("up", "--json")[3:]]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)


def reason(result: subprocess.CompletedProcess[str]) -> str:
    return json.loads(result.stdout)["reason"]


def start_once(world, **options) -> None:
    world.publish(**options)
    world.configure()
    assert up(world).returncode == 0
    assert world.companion("down").returncode == 0


def test_without_a_network_it_starts_from_what_was_accepted(world) -> None:
    start_once(world)
    world.manifest_host.stop()
    world.model_host.stop()
    started = up(world)
    assert started.returncode == 0, started.stderr
    assert "the stored one of" in started.stderr
    manifest = world.status()["manifest"]
    assert (manifest["version"], manifest["source"]) == (1, "stored")
    assert manifest["fetched_at"] in world.companion("status").stdout
    assert "stored" in world.companion("status").stdout
    rows = json.loads(world.companion("doctor", "--json").stdout)["rows"]
    [row] = [row for row in rows if row["id"] == "manifest"]
    assert row["status"] == "ok"
    assert "the stored one" in row["detail"]
    assert world.companion("down").returncode == 0


def read(host, context, tmp_path) -> CurrentManifest:
    return current_manifest(
        host.url("/manifest.json"),
        egress=LiveEgress(),
        context=context,
        trusted_keys=[PUBLISHER.public_key],
        memory=ManifestMemory(tmp_path / "manifests" / "memory.json"),
        wall_now=TEST_NOW,
        cancelled=threading.Event(),
    )


@pytest.fixture
def host(authority) -> Iterator[ModelHost]:
    document = manifest_document("https://127.0.0.1:1/m/tiny.gguf", b"model")
    content = {"/manifest.json": PUBLISHER.envelope(document)}
    with ModelHost(authority.server_context(), content, name="localhost") as host:
        yield host


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_host_that_cannot_answer_leads_to_the_stored_one(host, context, tmp_path, status) -> None:
    read(host, context, tmp_path)
    host.misbehave = Misbehaviour(status=status)
    current = read(host, context, tmp_path)
    assert current.is_stored
    assert str(status) in current.unreachable


@pytest.mark.parametrize("status", [404, 403, 204])
def test_a_host_that_answers_something_else_is_believed(host, context, tmp_path, status) -> None:
    read(host, context, tmp_path)
    host.misbehave = Misbehaviour(status=status)
    with pytest.raises(CompanionError) as caught:
        read(host, context, tmp_path)
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE


def test_a_host_that_stops_leads_to_the_stored_one_and_a_foreign_one_does_not(
    host, context, tmp_path
) -> None:
    read(host, context, tmp_path)
    with pytest.raises(CompanionError) as caught:
        read(host, build_tls_context(), tmp_path)
    assert "certificate" in caught.value.detail
    host.stop()
    assert read(host, context, tmp_path).is_stored


def test_a_clock_that_was_ahead_once_locks_nobody_out(world) -> None:
    start_once(world, days=10)
    assert reason(up(world, days_ahead=20)) == Reason.MANIFEST_EXPIRED
    refused = up(world)
    assert reason(refused) == Reason.MANIFEST_EXPIRED
    assert "this machine's clock has already said" in refused.stderr
    assert "companion doctor --repair" in REASONS[Reason.MANIFEST_EXPIRED].advice
    # A program that nobody watches is not let out by the repair alone.
    assert clock_row(world, "--repair")["fix"] == "companion doctor --repair --yes"
    assert reason(up(world)) == Reason.MANIFEST_EXPIRED
    assert clock_row(world, "--repair", "--yes")["status"] == "repaired"
    started = up(world)
    assert started.returncode == 0, started.stderr


def clock_row(world, *options) -> dict:
    told = world.companion("doctor", *options, "--json", stdin=subprocess.DEVNULL)
    [row] = [row for row in json.loads(told.stdout)["rows"] if row["id"] == "clock"]
    return row


def test_a_yes_without_a_repair_is_told(world) -> None:
    told = world.companion("doctor", "--yes")
    assert told.returncode == 2
    assert "--repair" in told.stderr


def test_the_ids_that_there_are_are_named(world) -> None:
    world.publish()
    world.configure(model={"id": "huge"})
    refused = up(world)
    assert reason(refused) == Reason.MODEL_NOT_IN_MANIFEST
    assert "the manifest has tiny" in refused.stderr
