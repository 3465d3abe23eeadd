"""Ask the runtime's health through our own front door, with the token.

The whole way is proved: listener, guard, token, relay and backend. What the plugin's judge
raises, returns that is no bool, or takes too long over, is a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from companion_core.deadline import call_with_deadline_async
from companion_core.decisions.guard import HEALTH_PATH
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress import Egress
from companion_core.errors import Reason
from companion_core.providers import HealthChecker, HealthResponse

__all__ = ["HealthProbe"]

MAX_HEALTH_BYTES: Final = 64 * 1024
_FAILED = refuse(Reason.HEALTH_FAILED)


class HealthProbe:
    """Probes the gateway at `port`; the answers tell whether the runtime serves its model."""

    def __init__(
        self,
        *,
        port: int,
        token: str,
        checker: HealthChecker,
        served_model: Callable[[], str],
        egress: Egress,
        judge_deadline: float = 2.0,
        answer_deadline: float = 5.0,
    ) -> None:
        self._port = port
        self._token = token
        self._checker = checker
        self._served_model = served_model
        self._egress = egress
        self._judge_deadline = judge_deadline
        self._answer_deadline = answer_deadline

    async def probe(self) -> Verdict:
        """Ask once; OK or `health_failed`, never an exception."""
        try:
            status, body = await call_with_deadline_async(self._ask, seconds=self._answer_deadline)
            response = HealthResponse(status=status, body=body, served_model=self._served_model())
            judged = await call_with_deadline_async(
                self._checker.judge, response, seconds=self._judge_deadline
            )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return _FAILED
        return OK if judged is True else _FAILED

    def _ask(self) -> tuple[int, bytes]:
        connection = self._egress.connect_loopback(self._port, timeout=self._answer_deadline)
        try:
            connection.request(
                "GET", HEALTH_PATH, headers={"Authorization": f"Bearer {self._token}"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_HEALTH_BYTES)
        finally:
            connection.close()
