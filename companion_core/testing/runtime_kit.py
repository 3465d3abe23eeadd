"""Conformance of a started runtime: the plan is carried out as the core does, and asked once.

The runtime is started confined as far as this machine can, behind a gateway of its own and with a
tiny model, once for each channel that its spawner declares; nothing of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.config.sections import Config
from companion_core.decisions.isolation import Tier, choose_tier
from companion_core.decisions.manifest import verify_manifest
from companion_core.decisions.verdict import Verdict
from companion_core.egress.interface import Egress
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.plugin_host import (
    EMBEDDED,
    Chosen,
    ChosenRuntime,
    Role,
    rebuild_binaries,
    snapshot_provider,
)
from companion_core.providers import ResourceLimits, SpawnPlan, SpawnRequest
from companion_core.runtime import probe_isolation, process_probe
from companion_core.serving.assembly import RuntimeProviders, default_ram_ceiling
from companion_core.serving.serving import Serving
from companion_core.system.secret import Secret
from companion_core.testing.fakes import FakeDownloader
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document
from companion_core.testing.rulebook import Rulebook, Untried

__all__ = ["RUNTIME_RULES", "check_runtime"]

RUNTIME_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "the runtime starts as planned: it says its ready_text, listens on its channel and "
        "nowhere else, and its health checker calls it healthy",
        2: "it answers a question through the gateway",
        3: "it writes neither the key that it was given nor what it was asked to its output",
    }
)

_BOOK: Final = Rulebook("runtime", RUNTIME_RULES)
_TINY_MODEL: Final = Path(__file__).parents[1] / "demo" / "model" / "companion-tiny.gguf"
_MODEL_URL: Final = "https://127.0.0.1/models/tiny"
_CHAT: Final = "/v1/chat/completions"
_NO_PROGRAM: Final = frozenset({Reason.ISOLATION_UNAVAILABLE, Reason.MEMORY_SHORT})
_LACKS: Final = frozenset({Reason.DISK_UNAVAILABLE, Reason.LIMIT_REACHED})
_KEY: Final = "[key]"  # stands in the log where the backend's key was
_OK: Final = 200
ANSWER_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What is started, and of what."""

    providers: RuntimeProviders
    model: bytes
    model_format: str
    seconds: float
    sha256: str | None
    open_backend: bool


def check_runtime(
    spawner: Any,
    health: Any,
    *,
    modules: frozenset[str] = frozenset(),
    folders: tuple[str, ...] = (),
    model: Path | None = None,
    open_backend: bool = False,
    seconds: float = 60.0,
) -> tuple[Untried, ...]:
    """Start the runtime that `spawner` finds on this machine, and check it by `RUNTIME_RULES`.

    Args:
        spawner: plans it; the first program that it locates is started, the embedded one if any.
        health: judges it.
        modules: of the plugin's distribution, if the runtime is embedded.
        folders: where these modules lie, if not in the interpreter's own folders.
        model: a file of one of the spawner's formats; None takes the GGUF that the core ships.
        open_backend: the person would have to accept a backend without a key.
        seconds: how long a start may take, at most.

    Returns:
        what could not be tried on this machine.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected.
    """
    formats = sorted(spawner.formats)
    model_format = "gguf" if "gguf" in formats else formats[0]
    if model is None and model_format != "gguf":
        return (Untried(what=f"the start: no model of the format {model_format} was given"),)
    found = rebuild_binaries(_BOOK.ask(1, spawner.locate)) or ()
    paths = [binary.path for binary in found]
    if not paths:
        return (Untried(what="the start: locate finds no program on this machine"),)
    path = EMBEDDED if EMBEDDED in paths else paths[0]
    egress = LiveEgress()
    start = _Start(
        providers=_providers(
            egress, path, spawner=spawner, health=health, modules=modules, folders=folders
        ),
        model=(_TINY_MODEL if model is None else model).read_bytes(),
        model_format=model_format,
        seconds=seconds,
        sha256=None if path == EMBEDDED else hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        open_backend=open_backend,
    )
    untried: list[Untried] = []
    for channel in sorted(spawner.channels):
        untried += _in_own_loop(_limited(start, channel), egress, channel)
    return tuple(untried)


def _providers(
    egress: Egress,
    path: str,
    *,
    spawner: Any,
    health: Any,
    modules: frozenset[str],
    folders: tuple[str, ...],
) -> RuntimeProviders:
    working = frozenset(state.tier for state in probe_isolation(egress) if state.works)
    tier = choose_tier("best", sys.platform, working)
    chosen = ChosenRuntime(
        spawn=Chosen(plugin="checked", provider=spawner),
        health=Chosen(plugin="checked", provider=health),
        download=Chosen(plugin="none", provider=FakeDownloader({})),
        probe=Chosen(plugin="process", provider=process_probe.companion_probe()),
        modules=modules,
        folders=folders,
    )
    limits = ResourceLimits(
        max_ram_bytes=default_ram_ceiling(), max_vram_bytes=None, max_cpu_percent=100
    )
    return RuntimeProviders(
        chosen=chosen,
        binary=path,
        limits=limits,
        tier=Tier.NONE if isinstance(tier, Verdict) else tier,
    )


def _limited(start: _Start, channel: str) -> _Start:
    """Return the same start on one channel only, with a deadline that a check can wait for."""
    snapshot: Any = snapshot_provider(Role.SPAWN, start.providers.chosen.spawn.provider)
    _BOOK.expect(1, not isinstance(snapshot, str), seen=f"{snapshot}", expected="a Spawner")
    ask = snapshot.plan

    def plan(request: SpawnRequest) -> Any:
        planned = ask(request)
        if type(planned) is not SpawnPlan:
            return planned
        deadline = min(planned.start_deadline_seconds, start.seconds)
        return replace(planned, start_deadline_seconds=deadline)

    limited = replace(snapshot, plan=plan, channels=frozenset({channel}))
    chosen = replace(start.providers.chosen, spawn=Chosen(plugin="checked", provider=limited))
    return replace(start, providers=replace(start.providers, chosen=chosen))


def _in_own_loop(start: _Start, egress: Egress, channel: str) -> tuple[Untried, ...]:
    """Carry the check out in a thread with an event loop of its own; the caller may run in one."""
    outcome: list[tuple[Untried, ...] | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(_check_start(start, egress, channel)))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=run, name="companion-runtime-check")
    thread.start()
    thread.join()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


async def _check_start(start: _Start, egress: Egress, channel: str) -> tuple[Untried, ...]:
    token, question = Secret(secrets.token_urlsafe(32)), f"canary-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="kit-", dir=_temporary_folder()) as name:
        paths = InstancePaths(Path(name, "state"))
        paths.prepare()
        log = paths.logs / "runtime.log"
        with contextlib.closing(_stage(start, paths)) as model:
            serving = Serving(_config(start), paths, start.providers, token=token, egress=egress)
            await serving.open()
            try:
                await serving.start(model)
                answered = await asyncio.to_thread(
                    _ask, egress, serving.gateway.port, token, question
                )
            except CompanionError as error:
                if error.reason in _NO_PROGRAM:
                    return (Untried(what=f"the start on {channel}: {error.reason}"),)
                if error.reason in _LACKS:  # the machine's, whatever the plugin is worth
                    raise
                seen = f"{error.reason} on {channel}: {error.detail}".rstrip(": ")
                raise _BOOK.broken(1, seen=seen, expected="a healthy runtime") from None
            finally:
                await serving.stop()
                await serving.gateway.close()
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for secret, what in ((_KEY, "its key"), (question, "what it was asked")):
        _BOOK.expect(3, secret not in said, seen=f"{what} on {channel}", expected="neither")
    if answered is None:
        return (Untried(what=f"rule 2 on {channel}: the plan has no {_CHAT}"),)
    _BOOK.expect(2, answered == _OK, seen=f"status {answered} on {channel}", expected="200")
    return ()


def _temporary_folder() -> str:
    """Return where the check keeps its state; a path of the state has no links in it."""
    return os.path.realpath(tempfile.gettempdir())


def _stage(start: _Start, paths: InstancePaths) -> VerifiedModel:
    """Return the model as a publisher of the kit's own vouches for it."""
    publisher = FakePublisher()
    document = manifest_document(_MODEL_URL, start.model)
    document["models"][0]["format"] = start.model_format
    manifest = verify_manifest(
        publisher.envelope(document),
        trusted_keys=(publisher.public_key,),
        now=TEST_NOW,
        last_seen=None,
    )
    if isinstance(manifest, Verdict):
        raise EnvironmentUnavailable(manifest.reason)
    return ModelStore(paths.models).stage(
        manifest.models[0],
        allowed_sources=manifest.allowed_sources,
        download=FakeDownloader({_MODEL_URL: start.model}).open,
    )


def _config(start: _Start) -> Config:
    runtime: dict[str, Any] = {"threads": 1, "unsafe_open_backend": start.open_backend}
    if start.sha256 is not None:
        runtime["binary_sha256"] = start.sha256
    return parse_config(
        {
            "manifest": {"url": "file:///m", "trusted_keys": [FakePublisher().public_key]},
            "model": {"id": "tiny"},
            "runtime": runtime,
        }
    )


def _ask(egress: Egress, port: int, token: Secret, question: str) -> int | None:
    """Return the status of one question; None if the runtime serves no chat."""
    connection = egress.connect_loopback(port, timeout=ANSWER_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {token.reveal()}", "Content-Type": "application/json"}
        message = {"role": "user", "content": question}
        body = {"model": "tiny", "messages": [message], "max_tokens": 4}
        connection.request("POST", _CHAT, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return None if answer.status in {404, 405} else answer.status
