"""The runtime behind its gateway: started, asked for its health, drained and stopped.

The only secrets here are the session token, which the gateway compares, and the backend's key; the
companion makes a new token, and each start a new key.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Final

from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.decisions.availability import AvailabilityFacts
from companion_core.decisions.descriptors import share_descriptors
from companion_core.decisions.lifecycle import State, can_serve_inference
from companion_core.decisions.restart import Ending, Size
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.gateway import Gateway, GatewaySettings, HealthProbe
from companion_core.models.store import VerifiedModel
from companion_core.runtime import (
    ResourceMonitor,
    StartedBackend,
    Supervisor,
    computes_a_token,
    describe_exit,
    keep_awake,
    quote,
    require_memory,
)
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.backend_at_gateway import BackendAtGateway
from companion_core.serving.events import Tell
from companion_core.serving.kept_port import keep_port, kept_port
from companion_core.serving.placement import placement_of, require_placement
from companion_core.serving.runtime_health import RuntimeHealth
from companion_core.serving.status import GatewayStatus, RuntimeStatus, ServingStatus
from companion_core.serving.watchdog import Timing, Watchdog
from companion_core.system.clock import recency_now
from companion_core.system.lacks import limit_told_in
from companion_core.system.open_files import open_file_limit
from companion_core.system.running_clock import RunningClock
from companion_core.system.secret import Secret
from companion_core.system.tasks import cancel, outlast

__all__ = ["Serving"]

LIVENESS_SECONDS: Final = 30.0
_TOLD_BY_OUTPUT: Final = frozenset(
    {Reason.RUNTIME_EXITED, Reason.SPAWN_FAILED, Reason.START_TIMEOUT}
)


class Serving:
    """One gateway, and the runtime that is behind it now.

    Attributes:
        gateway: keeps its port, whatever becomes of the runtime.
        exited: set when the runtime ended by itself or was ended for what it did.
        size: how large the next start is.
        full_size: as configured.
        watchdog: keeps the runtime of this model serving.
    """

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        providers: RuntimeProviders,
        *,
        token: Secret,
        egress: Egress,
        timing: Timing | None = None,
        tell: Tell = lambda _event: None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._providers = providers
        self._egress = egress
        chosen, section = providers.chosen, config.gateway
        self._clock = RunningClock()
        room = share_descriptors(open_file_limit(), section.max_in_flight)
        self.gateway = Gateway(
            GatewaySettings(
                token=token,
                model_id=config.model_id,
                aliases=config.models.aliases,
                port=section.port,
                requests_per_minute=section.requests_per_minute,
                max_in_flight=section.max_in_flight,
                queue_bound=section.queue_bound,
                queue_deadline_seconds=section.queue_deadline_seconds,
                first_byte_seconds=section.first_byte_seconds,
                max_connections=room.connections,
                accepted_at_once=room.accepted_at_once,
                second_parser=section.second_parser,
            ),
            self,
            egress=egress,
            clock=self._clock,
            on_sweep=self._clock.tick,
        )
        self._current = BackendAtGateway(self.gateway, chosen.health.provider)
        self._supervisor = Supervisor(egress, clock=recency_now, listener=self._current)
        self._monitor = ResourceMonitor(
            chosen.probe.provider, self._supervisor.observed, providers.limits, clock=recency_now
        )
        probe = HealthProbe(
            port=lambda: self.gateway.port,
            token=token,
            checker=chosen.health.provider,
            served_model=self._current.served_model,
            egress=egress,
        )
        self._health = RuntimeHealth(self.gateway, self._supervisor, probe, chosen.health.plugin)
        self._model: VerifiedModel | None = None
        self._settling: asyncio.Task[None] | None = None
        self.exited = asyncio.Event()
        self.size = self.full_size = Size(
            parallel=section.max_in_flight, context_length=config.runtime.context_length
        )
        self._timing = Timing() if timing is None else timing
        self._tell = tell
        self.watchdog = Watchdog(self, self._timing, clock=self._clock, tell=tell)

    # --- what the gateway asks before each request; both answers are ready ----------------

    def lifecycle(self) -> Verdict:
        """Only `ready` serves (I-09)."""
        return OK if can_serve_inference(self._supervisor.state) else refuse(Reason.NOT_READY)

    def resources(self) -> Verdict | None:
        """The newest observation against the limits (I-12)."""
        return self._monitor.fresh_verdict()

    def when_observed(self, call: Callable[[], None]) -> None:
        """See `ServingConditions`."""
        self._monitor.when_observed(call)

    # --- the way up and down --------------------------------------------------------------

    async def open(self) -> int:
        """Take the gateway's port; the gateway refuses every request until a runtime is ready.

        Returns:
            The port of earlier starts, if it had to be another one this time; else 0.

        Raises:
            EnvironmentUnavailable: `listener_not_bound`.
        """
        self._health.close()  # its connection may be to an earlier port
        kept = kept_port(self._paths.port_file)
        own = self._paths.gateway_socket() if self._config.gateway.unix_socket else None
        await self.gateway.start(rather=kept, unix_socket=own)
        port, configured = self.gateway.port, self._config.gateway.port
        if not configured and port != kept:
            keep_port(self._paths.port_file, port)
        return kept if not configured and kept and port != kept else 0

    async def start(self, model: VerifiedModel) -> None:
        """Start the runtime and return when it has answered a health check at the gateway.

        Raises:
            CompanionError: nothing of the runtime is left; the detail has its last lines where
                they may say why, and `limit_reached` names the limit of which they speak.
        """
        await require_memory(model, self._providers.limits)
        self.exited.clear()
        self._current.has_process.clear()
        self._model = model
        self.gateway.name_model(model.model_id)
        self._supervisor.on_exit = self._on_exit
        observing = asyncio.ensure_future(self._observe())
        try:
            spec = self._providers.start_spec(self._config, self._paths, model, self.size)
            with keep_awake():
                backend = await self._supervisor.start(spec)
                await self._health.wait(backend.ready_by, self._require_running)
            await observing
            await require_placement(backend, require_gpu=self._config.runtime.require_gpu)
            self._supervisor.report_health(ok=True)
            self._settling = asyncio.ensure_future(self._supervisor.settle())
        except BaseException as error:
            observing.cancel()
            await outlast(observing)
            await self.stop()
            lines = self._supervisor.last_lines
            if isinstance(error, OSError):  # no descriptor or no memory is left, just now
                detail = errno.errorcode.get(error.errno or 0, "")
                raise EnvironmentUnavailable(Reason.SPAWN_FAILED, detail) from error
            if isinstance(error, CompanionError) and error.reason in _TOLD_BY_OUTPUT and lines:
                error.detail = "\n".join(filter(None, [error.detail, quote(lines)]))
                if limit := limit_told_in(lines):  # the runtime ended for want of it
                    detail = f"{limit}\n{error.detail}"
                    raise EnvironmentUnavailable(Reason.LIMIT_REACHED, detail) from error
            raise

    async def drain(self, seconds: float) -> None:
        """Take no new request, and wait at most so long for those in flight."""
        self._health.last_ok = None
        if self._supervisor.state is State.READY:
            self._supervisor.begin_drain()
        await self.gateway.drain(seconds)

    async def stop(self) -> None:
        """End the runtime's whole tree; the gateway keeps its port."""
        self._supervisor.on_exit = None
        self._current.take_away()
        self._health.close()
        if self._settling is not None:
            await cancel(self._settling)
            self._settling = None
        await self._monitor.stop()
        await self._supervisor.stop()

    @property
    def _backend(self) -> StartedBackend | None:
        return self._current.backend

    # --- watching -------------------------------------------------------------------------

    def _on_exit(self) -> None:
        self._health.last_ok = None
        self.gateway.detach()
        self.exited.set()

    async def _observe(self) -> None:
        """Begin while the model loads: the first reading of processor time needs a pause."""
        await self._current.has_process.wait()
        self._health.ask_ahead()
        await self._monitor.start()

    def _require_running(self) -> None:
        if self._backend is None:  # `stop` was called meanwhile
            raise CompanionError(Reason.INTERRUPTED)
        if not self.exited.is_set():
            return
        ending = self._supervisor.last_ending
        if ending is None:
            raise EnvironmentUnavailable(Reason.RUNTIME_EXITED)
        plugin = self._providers.chosen.spawn.plugin
        raise error_for(ending.reason, describe_exit(ending.exit_code), plugin=plugin)

    async def check_health(self) -> Verdict:
        """Ask for the runtime's health through the gateway, and read the runtime back."""
        return await self._health.check()

    def begin_anew(self, size: Size) -> None:
        """Begin with another model or size; how often the runtime before ended no longer counts."""
        self.size = size
        self.watchdog = Watchdog(self, self._timing, clock=self._clock, tell=self._tell)

    # --- what the watchdog asks -----------------------------------------------------------

    @property
    def last_ending(self) -> Ending | None:
        """How the newest runtime ended."""
        return self._supervisor.last_ending

    @property
    def idle(self) -> bool:
        """Whether no request runs and none waits."""
        now = self.gateway.snapshot()
        return now.in_flight == 0 and now.queued == 0

    @property
    def resting_for(self) -> float:
        """For how many seconds the runtime has used next to no processor."""
        return self._monitor.resting_for()

    async def restart(self) -> None:
        """Start the same model again, with the size in `size`."""
        if self._model is not None:
            await self.start(self._model)

    async def computes(self) -> bool:
        """Tell whether the runtime really computes a token; asks it without the gateway."""
        backend = self._backend
        if backend is None:
            return False
        ok = await computes_a_token(self._egress, backend, LIVENESS_SECONDS)
        if not ok:
            self._health.last_ok = None
        return ok

    def terminate_unhealthy(self, reason: Reason) -> None:
        """End the runtime; what follows is as if it had ended by itself."""
        self._supervisor.terminate_unhealthy(reason)

    def over_memory_for(self) -> float:
        """Return for how many seconds it has been above a ceiling of memory."""
        return self._monitor.over_memory_for()

    def unobserved_for(self) -> float:
        """Return for how many seconds nobody could say what it uses."""
        return self._monitor.unobserved_for()

    async def require_room_for(self, model: VerifiedModel) -> None:
        """Require that a model fits below the ceilings, whatever is free just now.

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
            last_health_ok=self._health.last_ok,
            now=recency_now(),
        )

    @property
    def runtime(self) -> RuntimeStatus | None:
        """The runtime that was launched last, until it is taken down."""
        backend = self._backend
        if backend is None:
            return None
        facts = backend.facts
        return RuntimeStatus(
            name=self._providers.chosen.spawn.plugin,
            pid=backend.pid,
            channel=backend.channel_name,
            isolation=backend.tier,
            ceilings="hard" if backend.ceilings.hard else "observed",
            ceilings_detail=backend.ceilings.detail,
            placement=placement_of(backend),
            context_length=None if facts is None else facts.fit.context,
            model_context_length=None if facts is None else facts.longest,
        )

    def _gateway_status(self) -> GatewayStatus | None:
        if not self.gateway.bound:
            return None
        own = self.gateway.unix_socket
        return GatewayStatus(
            url=self.gateway.base_url, unix_socket=None if own is None else str(own)
        )

    def status(self) -> ServingStatus:
        """Say what the gateway and the runtime do now."""
        healthy_at = self._health.last_ok
        return ServingStatus(
            lifecycle=self._supervisor.state,
            gateway=self._gateway_status(),
            runtime=self.runtime,
            admission=self.gateway.snapshot(),
            resources=self._monitor.latest,
            gave_up=self.watchdog.gave_up,
            last_health_ok_seconds_ago=None
            if healthy_at is None
            else round(recency_now() - healthy_at, 3),
        )
