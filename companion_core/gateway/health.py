"""Ask the runtime's health through our own front door, with the token.

That proves the whole path: listener, guard, token, relay and backend. A plugin's judge that
raises, takes too long or returns anything but a bool has failed the check.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from companion_core.decisions.guard import HEALTH_PATH
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.errors import Reason
from companion_core.gateway.http.chunked import ChunkFramer
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.interface import Upstream
from companion_core.gateway.upstream import BackendPool
from companion_core.providers import HealthChecker, HealthResponse, TcpChannel
from companion_core.system.deadline import result_of, start_call
from companion_core.system.running_clock import running_timeout
from companion_core.system.secret import Secret

__all__ = ["HealthProbe"]

MAX_HEALTH_BYTES: Final = 64 * 1024
_PREFER_TO_WAIT: Final = "Prefer: wait=600\r\n"
_FAILED = refuse(Reason.HEALTH_FAILED)


class HealthProbe:
    """Probes the gateway at `port()`; the answers tell whether the runtime serves its model.

    Attributes:
        judge_failed: the newest answer was not judged: the plugin raised, or returned
            something else than a bool.
    """

    def __init__(
        self,
        *,
        port: Callable[[], int],
        token: Secret,
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
        self._ahead: BackendPool | None = None
        self._asked: _Answer | None = None
        self.judge_failed = False

    def ask_ahead(self) -> None:
        """Ask before there is a backend: the gateway holds the check until there is one.

        The next probe takes the answer.
        """
        self._take_back()
        self._asked = self._ask(wait=True)

    def connect_ahead(self) -> None:
        """Make the next probe's connection now; a probe that finds it gone makes its own."""
        if self._ahead is None or self._ahead.is_empty:
            self._ahead = self._new_pool()
            self._ahead.open_ahead()

    def close(self) -> None:
        """Take back the check that was asked ahead; close the connection that was made ahead."""
        self._take_back()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    async def probe(self) -> Verdict:
        """Ask once; OK or `health_failed`, never an exception."""
        self.judge_failed = False
        asked = await self._answer()
        if asked is None:
            return _FAILED
        response = HealthResponse(
            status=asked.status, body=bytes(asked.body), served_model=self._served_model()
        )
        try:
            call = start_call(self._checker.judge, response)
        except RuntimeError:
            return _FAILED  # the system has no thread to give
        try:
            async with running_timeout(self._judge_deadline):
                judged = await result_of(call)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except TimeoutError:
            return _FAILED  # a machine that is short of memory may do better next time
        except BaseException:  # noqa: BLE001 - even SystemExit of a plugin fails its check alone
            judged = None
        self.judge_failed = type(judged) is not bool
        return OK if judged is True else _FAILED

    async def _answer(self) -> _Answer | None:
        """Return the answer to the check asked ahead, or asked now; None without a good one."""
        if self._asked is not None and self._asked.complete.done():
            self._take_back()  # that answer is older than this question
        asked, self._asked = self._asked, None
        try:
            asked = asked or self._ask()
            async with running_timeout(self._answer_deadline):
                return asked if await asked.complete else None
        except Exception:  # noqa: BLE001 - any fault on the path means that there is no good answer
            return None
        finally:
            if asked is not None:  # after the answer has been used
                asyncio.get_running_loop().call_soon(asked.pool.close)

    def _take_back(self) -> None:
        if self._asked is not None:
            self._asked.pool.close()
            self._asked = None

    def _ask(self, *, wait: bool = False) -> _Answer:
        pool, self._ahead = self._ahead or self._new_pool(), None
        request = (
            f"GET {HEALTH_PATH} HTTP/1.1\r\nHost: 127.0.0.1:{self._port()}\r\n"
            f"Authorization: Bearer {self._token.reveal()}\r\n"
            f"{_PREFER_TO_WAIT if wait else ''}\r\n"
        )
        answer = _Answer(pool)
        pool.open_and_send(answer, request.encode("ascii"), check=True)
        return answer

    def _new_pool(self) -> BackendPool:
        # A client like any other, but on the gateway's own event loop: no thread has to take turns.
        listener = TcpChannel(host="127.0.0.1", port=self._port())
        return BackendPool(listener, self._egress, time.monotonic)


class _Answer:
    """Collects one answer; see `Sink`.

    Attributes:
        pool: of the one connection that it comes on.
        complete: whether there was one, once that is known.
    """

    def __init__(self, pool: BackendPool) -> None:
        self.pool = pool
        self.complete: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.body = bytearray()
        self._framer: ChunkFramer | None = None
        self._upstream: Upstream | None = None

    def upstream_bound(self, upstream: Upstream) -> bool:
        self._upstream = upstream
        return not self.complete.done()

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        self.status = head.status
        if head.chunked:
            self._framer = ChunkFramer(collect=True)
            self.body = self._framer.payload
        self.response_data(body)

    def response_data(self, data: bytes) -> None:
        if self._framer is not None:
            self._framer.feed(data)
        else:
            self.body += data
        if len(self.body) > MAX_HEALTH_BYTES and self._upstream is not None:
            self._upstream.abort()
            self.response_failed()

    def response_ended(self, now: float) -> None:  # noqa: ARG002 - `Sink` has it
        if not self.complete.done():
            self.complete.set_result(True)

    def response_failed(self) -> None:
        if not self.complete.done():
            self.complete.set_result(False)
