"""The runtime behind its gateway: started, watched, drained, and replaced when it ends.

Knows no secret but the session token that the gateway compares and the per-start backend
key; both are values that `companion.py` and the launcher made for this start.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import Config
from companion_core.decisions.availability import AvailabilityFacts
from companion_core.decisions.lifecycle import State, can_serve_inference
from companion_core.decisions.restart import Ending, Size
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.gateway import Backend, Gateway, GatewaySettings, HealthProbe
from companion_core.models.store import VerifiedModel
from companion_core.runtime.liveness import computes_a_token
from companion_core.runtime.process.handle import describe_exit
from companion_core.runtime.process.output import quote
from companion_core.runtime.resources.free_memory import require_memory
from companion_core.runtime.resources.monitor import ResourceMonitor
from companion_core.runtime.start.keep_awake import keep_awake
from companion_core.runtime.start.polling import Polling
from companion_core.runtime.supervisor import StartedBackend, StartHooks, StartSpec, Supervisor
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.watchdog import (
    Timing,
    Watchdog,
)
from companion_core.system.clock import recency_now
from companion_core.system.tasks import (
    cancel,
    outlast,
)

__all__ = ["Serving"]

LIVENESS_SECONDS: Final = 30.0
# A start reads the runtime back before anything is sent to it, and from time to time while it
# loads: that counts for the first answer.
FRESH_SECONDS: Final = 0.2
_SAID_BY_RUNTIME: Final = frozenset(
    {Reason.RUNTIME_EXITED, Reason.SPAWN_FAILED, Reason.START_TIMEOUT}
)


class Serving:
    """One gateway, and the runtime that currently stands behind it.

    Attributes:
        launched: set when there is a process to be observed, ready or not.
        exited: set when the runtime ended by itself or was ended for what it did.
        size: how large the next start is.
        full_size: as configured.
        watchdog: what keeps the runtime of this model serving.
    """

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        providers: RuntimeProviders,
        *,
        token: str,
        egress: Egress,
        timing: Timing | None = None,
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
                second_parser=section.second_parser,
            ),
            self,
            egress=egress,
            clock=recency_now,
        )
        self._health = HealthProbe(
            port=lambda: self.gateway.port,
            token=token,
            checker=providers.chosen.health.provider,
            served_model=lambda: self._backend.served_model if self._backend else "",
            egress=egress,
        )
        self._supervisor.hooks = StartHooks(
            on_launch=self._expect,
            on_connectable=self.gateway.connect_expected,
            on_let_go=self.gateway.disconnect_expected,
            on_prepared=self.gateway.attach_expected,
        )
        self._backend: StartedBackend | None = None
        self._last_health_ok: float | None = None
        self._model: VerifiedModel | None = None
        self._settling: asyncio.Task[None] | None = None
        self.launched = asyncio.Event()
        self.exited = asyncio.Event()
        self.size = self.full_size = Size(
            parallel=section.max_in_flight, context_length=config.runtime.context_length
        )
        self._timing = Timing() if timing is None else timing
        self.watchdog = Watchdog(self, self._timing)

    # --- what the gateway asks before each request; both answers are kept ready -----------

    def lifecycle(self) -> Verdict:
        """Only `ready` serves (I-09)."""
        return OK if can_serve_inference(self._supervisor.state) else refuse(Reason.NOT_READY)

    def resources(self) -> Verdict:
        """The newest observation against the limits (I-12)."""
        return self._monitor.verdict()

    # --- the way up and down --------------------------------------------------------------

    async def open(self) -> None:
        """Take the gateway's port; it refuses everything until a runtime is ready.

        Raises:
            EnvironmentUnavailable: `listener_not_bound`.
        """
        self._health.close()  # of another port, if it has one
        await self.gateway.start()

    async def start(self, model: VerifiedModel) -> None:
        """Start the runtime and return when it has answered a health check at the gateway.

        Raises:
            CompanionError: nothing of the runtime is left; what it wrote last is in the detail
                where that tells why.
        """
        await require_memory(model, self._providers.limits)
        self.exited.clear()
        self.launched.clear()
        self._model = model
        self.gateway.name_model(model.model_id)
        self._supervisor.on_exit = self._on_exit
        observing = asyncio.ensure_future(self._observe())
        try:
            with keep_awake():
                backend = await self._supervisor.start(self._spec(model))
                await self._wait_for_health(backend.ready_by)
            await observing
            self._supervisor.report_health(ok=True)
            self._settling = asyncio.ensure_future(self._supervisor.settle())
        except BaseException as error:
            observing.cancel()
            await outlast(observing)
            await self.stop()
            lines = self._supervisor.last_lines
            if isinstance(error, CompanionError) and error.reason in _SAID_BY_RUNTIME and lines:
                error.detail = "\n".join(filter(None, [error.detail, quote(lines)]))
            raise

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
        self._health.close()
        self._backend = None
        if self._settling is not None:
            await cancel(self._settling)
            self._settling = None
        await self._monitor.stop()
        await self._supervisor.stop()

    def _spec(self, model: VerifiedModel) -> StartSpec:
        section, chosen = self._config.runtime, self._providers.chosen
        return StartSpec(
            spawner=chosen.spawn.provider,
            plugin_name=chosen.spawn.plugin,
            plugin_modules=chosen.modules,
            plugin_folders=chosen.folders,
            binary=self._providers.binary,
            binary_sha256=section.binary_sha256,
            model=model,
            data_dir=self._paths.runtime_data(chosen.spawn.plugin),
            run_dir=self._paths.run_folder(),
            log_path=self._paths.logs / "runtime.log",
            record_path=self._paths.runtime_record,
            limits=self._providers.limits,
            parallel=self.size.parallel,
            threads=section.threads,
            context_length=self.size.context_length,
            options=section.options,
            tier=self._providers.tier,
            allow_open_backend=section.unsafe_open_backend,
        )

    def _expect(self, backend: StartedBackend) -> None:
        self._backend = backend
        self.launched.set()
        self.gateway.expect(
            Backend(
                channel=backend.channel,
                key=backend.key,
                served_model=backend.served_model,
                health_path=self._providers.chosen.health.provider.path,
                routes=backend.routes,
                drop_fields=backend.drop_fields,
            )
        )

    # --- watching -------------------------------------------------------------------------

    def _on_exit(self) -> None:
        self._last_health_ok = None
        self.gateway.detach()
        self.exited.set()

    async def _observe(self) -> None:
        """Begin while the model loads: the first share of the processor takes its time."""
        await self.launched.wait()
        self._health.ask_ahead()
        await self._monitor.start()

    async def _wait_for_health(self, ready_by: float) -> None:
        """Ask until the runtime is healthy; a model that loads answers "not yet"."""
        polling = Polling(self._supervisor.activity)
        try:
            async with asyncio.timeout_at(ready_by):
                while not (await self.probe(max_age=FRESH_SECONDS)).ok:
                    if self._backend is None:  # stopped meanwhile, for the model's sake
                        raise CompanionError(Reason.INTERRUPTED)
                    if self.exited.is_set():
                        raise self._ended()
                    if self._health.judge_failed:  # it would go on to
                        plugin = self._providers.chosen.health.plugin
                        raise EnvironmentUnavailable(
                            Reason.HEALTH_FAILED, f"the health check of {plugin} fails itself"
                        )
                    # What the answer that says yes needs is made ready meanwhile.
                    self._health.connect_ahead()
                    await self._supervisor.check_runtime(max_age=FRESH_SECONDS / 2)
                    await polling.pause()
        except TimeoutError as error:
            self._supervisor.report_health(ok=False)
            raise EnvironmentUnavailable(Reason.START_TIMEOUT) from error

    def _ended(self) -> CompanionError:
        ending = self._supervisor.last_ending
        if ending is None:
            return EnvironmentUnavailable(Reason.RUNTIME_EXITED)
        plugin = self._providers.chosen.spawn.plugin
        return error_for(ending.reason, describe_exit(ending.exit_code), plugin=plugin)

    async def probe(self, *, max_age: float = 0) -> Verdict:
        """Ask through the gateway, and look again at what the runtime really holds open.

        Args:
            max_age: seconds; a look as recent as that counts.
        """
        if not self.gateway.bound:
            return refuse(Reason.LISTENER_NOT_BOUND)
        verdict = await self._health.probe()
        if verdict.ok:
            verdict = await self._supervisor.check_runtime(max_age=max_age)
        self._last_health_ok = recency_now() if verdict.ok else None
        return verdict

    def begin_anew(self, size: Size) -> None:
        """Forget how often the runtime ended; the next one, as large as `size`, is another."""
        self.size = size
        self.watchdog = Watchdog(self, self._timing)

    # --- what watchdog asks -----------------------------------------------------------------

    @property
    def last_ending(self) -> Ending | None:
        """How the newest runtime ended."""
        return self._supervisor.last_ending

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        now = self.gateway.snapshot()
        return now.in_flight == 0 and now.queued == 0

    async def restart(self) -> None:
        """Start the same model again, as large as `size` says."""
        if self._model is not None:
            await self.start(self._model)

    async def computes(self) -> bool:
        """Tell whether the runtime really computes a token, past the gateway."""
        backend = self._backend
        if backend is None:
            return False
        ok = await computes_a_token(self._egress, backend, LIVENESS_SECONDS)
        if not ok:
            self._last_health_ok = None
        return ok

    def terminate_unhealthy(self, reason: Reason) -> None:
        """End the runtime as if it had ended by itself."""
        self._supervisor.terminate_unhealthy(reason)

    def over_memory_for(self) -> float:
        """Return for how long it has been above a ceiling of memory."""
        return self._monitor.over_memory_for()

    async def require_room_for(self, model: VerifiedModel) -> None:
        """Require that a model is within the ceilings, whatever is free just now.

        Raises:
            CompanionError: `ram_over_limit`.
        """
        size = sum(file.size for file in model.files)
        await require_memory(model, self._providers.limits, free=size)

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
                "isolation": backend.tier.value,
                "ceilings": "hard" if backend.ceilings.hard else "observed",
                "ceilings_detail": backend.ceilings.detail,
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
            "gave_up": self.watchdog.gave_up,
            "last_health_ok_seconds_ago": None
            if healthy_at is None
            else round(recency_now() - healthy_at, 3),
        }
