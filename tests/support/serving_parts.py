"""A gateway with a runtime behind it, for tests: everything but manifest, keychain and plugins."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.plugin_host import Chosen, ChosenRuntime, RuntimeCode
from companion_core.providers import ResourceLimits
from companion_core.runtime.resources.probe import ProcessProbe
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.serving import Serving
from companion_core.serving.watchdog import Timing
from companion_core.system.secret import Secret

TOKEN = "t" * 43
PUBLIC_KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8032, section 7.1
LIMITS = ResourceLimits(max_ram_bytes=2**40, max_vram_bytes=None, max_cpu_percent=100)
HEALTH_SECONDS = 2
QUICK = Timing(
    health_interval=0.1,
    liveness_interval=0.1,
    unresponsive_after=1.0,
    over_limit_after=0.3,
    drain=5,
)


def make_serving(
    folder: Path,
    *,
    spawner: Any,
    health: Any,
    modules: frozenset[str] = frozenset(),
    binary: str = "embedded",
    tier: Tier = Tier.NONE,
    limits: ResourceLimits = LIMITS,
    timing: Timing = QUICK,
    gateway: dict[str, Any] | None = None,
    code: RuntimeCode | None = None,
    **runtime: Any,
) -> Serving:
    paths = InstancePaths(folder / "state")
    paths.prepare()
    told = {"threads": 1, "context_length": 512, **runtime}  # None: what is the default
    config = parse_config(
        {
            "manifest": {"url": "file:///m.json", "trusted_keys": [PUBLIC_KEY]},
            "model": {"id": "tiny"},
            "gateway": {"requests_per_minute": 6000, **(gateway or {})},
            "runtime": {name: value for name, value in told.items() if value is not None},
        }
    )
    egress = LiveEgress()
    chosen = ChosenRuntime(
        spawn=Chosen(plugin="test", provider=spawner),
        download=Chosen(plugin="https", provider=HttpsDownloader(egress, lambda: None)),
        health=Chosen(plugin="test", provider=health),
        probe=Chosen(plugin="process", provider=ProcessProbe()),
        modules=modules,
    )
    providers = RuntimeProviders(chosen=chosen, binary=binary, limits=limits, tier=tier, code=code)
    serving = Serving(config, paths, providers, token=Secret(TOKEN), egress=egress, timing=timing)
    hurry(serving)
    return serving


def hurry(serving: Serving) -> None:
    """Shorten what a test would only wait for: the pauses before a restart, a silent health check.

    How long they are is tested where they are decided, on a clock of the test's own.
    """
    watchdog: Any = serving.watchdog
    watchdog._sleep = lambda seconds: asyncio.sleep(seconds / 20)
    context = serving.gateway.context
    context.settings = replace(context.settings, health_seconds=HEALTH_SECONDS)


@contextlib.asynccontextmanager
async def serving_with(serving: Serving, model: Any) -> AsyncIterator[Serving]:
    """Open, start and watch it; on leaving nothing of it is left."""
    await serving.open()
    watching = None
    try:
        await serving.start(model)
        watching = asyncio.ensure_future(serving.watchdog.run())
        yield serving
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})
        await serving.stop()
        await serving.gateway.close()


async def chat(serving: Serving, **fields: Any) -> tuple[int, dict[str, Any]]:
    """One question through the gateway."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return await post(serving, "/v1/chat/completions", {**body, **fields})


async def post(serving: Serving, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One request through the gateway, with the token."""
    return await asyncio.to_thread(_post, serving.gateway.port, path, body)


def _post(port: int, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def stream(port: int, path: str, body: dict[str, Any]) -> str:
    """One streamed request, with the token; everything that came, for as long as it came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, json.dumps({**body, "stream": True}), headers)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def time_passes(seconds: float) -> None:
    """Put the event loop's clock forward: all that is due by then is due now."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]  # this loop's clock alone


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that happens soon; the bound only ends a broken test."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


def ready_again(serving, before: int):
    def check() -> bool:
        pid = getattr(serving.runtime, "pid", before)
        return pid != before and serving.lifecycle().ok

    return check
