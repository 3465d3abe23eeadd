"""Whether the runtime is healthy: asked through the gateway, and read back (I-09)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.gateway import Gateway, HealthProbe
from companion_core.runtime import Polling, Supervisor
from companion_core.system.clock import recency_now

__all__ = ["RuntimeHealth"]

# The start has read the runtime back before it sent anything, and does so again while the runtime
# loads: a look as recent as this counts for the first answer.
FRESH_SECONDS: Final = 0.2


class RuntimeHealth:
    """The health of the runtime behind one gateway.

    Args:
        gateway: through which the runtime is asked.
        supervisor: reads the runtime back.
        probe: asks the question.
        plugin: the name of the plugin that judges the answer.

    Attributes:
        last_ok: when the last check succeeded; None where the last one failed or was forgotten.
    """

    def __init__(
        self, gateway: Gateway, supervisor: Supervisor, probe: HealthProbe, plugin: str
    ) -> None:
        self.last_ok: float | None = None
        self._gateway = gateway
        self._supervisor = supervisor
        self._probe = probe
        self._plugin = plugin

    def ask_ahead(self) -> None:
        """Ask for the first time before the answer is waited for."""
        self._probe.ask_ahead()

    def close(self) -> None:
        """Forget the last answer, and close the connection to the gateway."""
        self.last_ok = None
        self._probe.close()

    async def check(self, *, max_age: float = 0) -> Verdict:
        """Ask for the runtime's health, and read the runtime back.

        Args:
            max_age: seconds; a look at the runtime as recent as that counts.
        """
        if not self._gateway.bound:
            return refuse(Reason.LISTENER_NOT_BOUND)
        verdict = await self._probe.probe()
        if verdict.ok:
            verdict = await self._supervisor.check_runtime(max_age=max_age)
        self.last_ok = recency_now() if verdict.ok else None
        return verdict

    async def wait(self, ready_by: float, require_running: Callable[[], None]) -> None:
        """Ask until the runtime is healthy; while its model loads it answers "not yet".

        Args:
            ready_by: when to give up, on the event loop's clock.
            require_running: raises where the runtime has ended.

        Raises:
            EnvironmentUnavailable: `start_timeout`, or `health_failed` where the plugin's own
                check fails.
        """
        polling = Polling(self._supervisor.activity)
        try:
            async with asyncio.timeout_at(ready_by):
                while not (await self.check(max_age=FRESH_SECONDS)).ok:
                    require_running()
                    if self._probe.judge_failed:  # and would fail again each time
                        raise EnvironmentUnavailable(
                            Reason.HEALTH_FAILED, f"the health check of {self._plugin} fails itself"
                        )
                    # Have a connection ready for the question that will be answered with yes.
                    self._probe.connect_ahead()
                    await self._supervisor.check_runtime(max_age=FRESH_SECONDS / 2)
                    await polling.pause()
        except TimeoutError as error:
            self._supervisor.report_health(ok=False)
            raise EnvironmentUnavailable(Reason.START_TIMEOUT) from error
