"""The runtime behind its gateway: started, watched, drained, and replaced when it ends.

Knows no secret but the session token that the gateway compares and the per-start backend
key; both are values that `companion.py` and the launcher made for this start.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from companion_core.assembly import RuntimeProviders
from companion_core.clock import recency_now
from companion_core.config import Config
from companion_core.decisions.availability import AvailabilityFacts
from companion_core.decisions.lifecycle import State
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress import Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.gateway import Backend, Gateway, GatewaySettings, HealthProbe
from companion_core.paths import InstancePaths
from companion_core.runtime.resource_monitor import ResourceMonitor
from companion_core.runtime.staging import VerifiedModel
from companion_core.runtime.supervisor import StartedBackend, StartSpec, Supervisor

__all__ = ["Serving"]

HEALTH_START_SECONDS: Final = 60.0
HEALTH_INTERVAL_SECONDS: Final = 5.0
FIRST_HEALTH_PAUSE_SECONDS: Final = 0.005
LONGEST_HEALTH_PAUSE_SECONDS: Final = 0.25
# Before each try to replace a runtime that ended by itself; after the last it stays stopped.
RESTART_DELAYS_SECONDS: Final = (1.0, 5.0, 15.0)


class Serving:
    """One gateway, and the runtime that currently stands behind it."""

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        providers: RuntimeProviders,
        *,
        token: str,
        egress: Egress,
    ) -> None:
        self._config = config
        self._paths = paths
        self._providers = providers
        self._egress = egress
        self._supervisor = Supervisor(egress, clock=recency_now)
        self._monitor = ResourceMonitor(
            providers.chosen.probe.provider,
            self._supervisor.tree,
            providers.limits,
            clock=recency_now,
        )
        section = config.gateway
        self.gateway = Gateway(
            GatewaySettings(
                token=token,
                model_id=config.model.id,
                port=section.port,
                requests_per_minute=section.requests_per_minute,
                max_in_flight=section.max_in_flight,
                queue_bound=section.queue_bound,
                queue_deadline_seconds=section.queue_deadline_seconds,
            ),
            self,
            egress=egress,
            clock=recency_now,
        )
        self._token = token
        self._health: HealthProbe | None = None
        self._backend: StartedBackend | None = None
        self._last_health_ok: float | None = None
        self._exited = asyncio.Event()

    # --- what the gateway asks before each request; both answers are kept ready -----------

    def lifecycle(self) -> Verdict:
        """Only `ready` serves (I-09)."""
        return OK if self._supervisor.state is State.READY else refuse(Reason.NOT_READY)

    def resources(self) -> Verdict:
        """The newest observation against the limits (I-12)."""
        return self._monitor.verdict()

    # --- the way up and down --------------------------------------------------------------

    async def open(self) -> None:
        """Take the gateway's port; it refuses everything until a runtime is ready.

        Raises:
            EnvironmentUnavailable: `listener_not_bound`.
        """
        await self.gateway.start()
        self._health = HealthProbe(
            port=self.gateway.port,
            token=self._token,
            checker=self._providers.chosen.health.provider,
            served_model=lambda: self._backend.served_model if self._backend else "",
            egress=self._egress,
        )

    async def start(self, model: VerifiedModel) -> None:
        """Start the runtime and return when it has answered a health check at the gateway.

        Raises:
            CompanionError: nothing of the runtime is left.
        """
        self._exited.clear()
        self._supervisor.on_exit = self._on_exit
        backend = await self._supervisor.start(self._spec(model))
        try:
            self._backend = backend
            self.gateway.attach(
                Backend(
                    channel=backend.channel,
                    key=backend.key,
                    served_model=backend.served_model,
                    health_path=self._providers.chosen.health.provider.path,
                    routes=backend.routes,
                    drop_fields=backend.drop_fields,
                )
            )
            await self._wait_for_health()
            await self._monitor.start()
        except BaseException:
            await self.stop()
            raise

    async def keep_running(self, model: VerifiedModel) -> None:
        """Watch health for ever, and replace a runtime that ended by itself."""
        while True:
            await self._watch_health()
            await self._restart(model)

    async def drain(self, seconds: float) -> None:
        """Take no new work and wait, at most so long, for what is in flight."""
        self._last_health_ok = None
        if self._supervisor.state is State.READY:
            self._supervisor.begin_drain()
        await self.gateway.drain(seconds)

    async def stop(self) -> None:
        """End the runtime's whole tree; the gateway keeps its port."""
        self._last_health_ok = None
        self._supervisor.on_exit = None
        self.gateway.detach()
        self._backend = None
        await self._monitor.stop()
        await self._supervisor.stop()

    def _spec(self, model: VerifiedModel) -> StartSpec:
        section, chosen = self._config.runtime, self._providers.chosen
        return StartSpec(
            spawner=chosen.spawn.provider,
            plugin_name=chosen.spawn.plugin,
            plugin_modules=chosen.modules,
            binary=self._providers.binary,
            binary_sha256=section.binary_sha256,
            model=model,
            data_dir=self._paths.runtime_data(chosen.spawn.plugin),
            run_dir=self._paths.run_folder(),
            log_path=self._paths.logs / "runtime.log",
            limits=self._providers.limits,
            parallel=self._config.gateway.max_in_flight,
            threads=section.threads,
            context_length=section.context_length,
            options=section.options,
            allow_open_backend=section.unsafe_open_backend,
        )

    # --- watching -------------------------------------------------------------------------

    def _on_exit(self) -> None:
        self._last_health_ok = None
        self.gateway.detach()
        self._exited.set()

    async def _wait_for_health(self) -> None:
        """Ask until the runtime is healthy; a model that loads answers "not yet"."""
        pause = FIRST_HEALTH_PAUSE_SECONDS
        deadline = recency_now() + HEALTH_START_SECONDS
        while not (await self._probe()).ok:
            if self._exited.is_set():
                raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
            if recency_now() > deadline:
                self._supervisor.report_health(ok=False)
                raise EnvironmentUnavailable(Reason.START_TIMEOUT)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_HEALTH_PAUSE_SECONDS)
        self._supervisor.report_health(ok=True)

    async def _probe(self) -> Verdict:
        """Ask through the gateway, and look again at what the runtime really holds open."""
        if self._health is None:
            return refuse(Reason.LISTENER_NOT_BOUND)
        verdict = await self._health.probe()
        if verdict.ok:
            verdict = await self._supervisor.check_runtime()
        self._last_health_ok = recency_now() if verdict.ok else None
        return verdict

    async def _watch_health(self) -> None:
        """Return when the runtime has ended by itself."""
        while not self._exited.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_INTERVAL_SECONDS):
                    await self._exited.wait()
                return
            await self._probe()

    async def _restart(self, model: VerifiedModel) -> None:
        await self.stop()
        for delay in RESTART_DELAYS_SECONDS:
            await asyncio.sleep(delay)
            with contextlib.suppress(CompanionError):
                await self.start(model)
                return
        await asyncio.Event().wait()  # given up: status says so until somebody stops us

    # --- what status says -----------------------------------------------------------------

    def availability_facts(self, *, verified: bool, token_stored: bool) -> AvailabilityFacts:
        """Gather what availability is decided from (I-09)."""
        return AvailabilityFacts(
            verified=verified,
            state=self._supervisor.state,
            listener_bound=self.gateway.bound,
            token_stored=token_stored,
            last_health_ok=self._last_health_ok,
            now=recency_now(),
        )

    def status(self) -> dict[str, Any]:
        """Return the runtime's part of `companion status --json`."""
        admission = self.gateway.snapshot()
        seen = self._monitor.latest
        chosen, backend = self._providers.chosen, self._backend
        healthy_at = self._last_health_ok
        return {
            "lifecycle": self._supervisor.state.value,
            "gateway": {"url": self.gateway.base_url} if self.gateway.bound else None,
            "runtime": None
            if backend is None
            else {
                "name": chosen.spawn.plugin,
                "pid": backend.pid,
                "channel": backend.channel_name,
            },
            "admission": {
                "in_flight": admission.in_flight,
                "max_in_flight": admission.max_in_flight,
                "queued": admission.queued,
                "queue_bound": admission.queue_bound,
            },
            "resources": None
            if seen is None
            else {
                "ram_bytes": seen.ram_bytes,
                "vram_bytes": seen.vram_bytes,
                "cpu_percent": seen.cpu_percent,
            },
            "last_health_ok_seconds_ago": None
            if healthy_at is None
            else round(recency_now() - healthy_at, 3),
        }
