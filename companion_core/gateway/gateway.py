"""The loopback front door's life: it takes its port, takes and leaves backends, and closes.

What its connections share is the `GatewayContext`. The gateway asks the companion two
constant-time questions per request (`ServingConditions`) and manages nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.decisions.client_key import ClientKey
from companion_core.decisions.guard import loopback_hosts
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.gateway.backend_requests import BackendRequests
from companion_core.gateway.client import ClientConnection
from companion_core.gateway.context import GatewayContext
from companion_core.gateway.listener import bind_loopback
from companion_core.gateway.settings import Backend, GatewaySettings, ServingConditions
from companion_core.gateway.upstream import BackendPool
from companion_core.providers import OPENAI_ROUTES
from companion_core.system.owner_socket import listen_owner_only

__all__ = ["Gateway"]

SWEEP_SECONDS: Final = 0.5
LISTEN_BACKLOG: Final = 512


class Gateway:
    """The front door of one companion.

    Args:
        settings: see `GatewaySettings`.
        conditions: what the companion is asked per request.
        egress: the doorway to the machine.
        clock: monotonic seconds; a `RunningClock` forgives what the companion was asleep for.
        on_sweep: called twice a second from `start` to `close`: that clock's `tick`.

    Attributes:
        context: what its connections share.
        port: that it listens on; 0 before it does.
        unix_socket: that it listens on too; None without one.
        backend: where requests are sent; None without one.

    Raises:
        UsageError: see `GatewayContext`.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        conditions: ServingConditions,
        *,
        egress: Egress,
        clock: Callable[[], float] = time.monotonic,
        on_sweep: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = GatewayContext(settings, conditions, clock)
        self.port = 0
        self.unix_socket: Path | None = None
        self.backend: Backend | None = None
        self._egress = egress
        self._on_sweep = on_sweep
        self._expected: tuple[Backend, BackendRequests] | None = None
        self._servers: list[asyncio.Server] = []
        self._hosts: tuple[str, ...] = ()
        self._sweep: asyncio.TimerHandle | None = None

    # --- listening -------------------------------------------------------------------------

    @property
    def bound(self) -> bool:
        """Whether the gateway holds its port."""
        return bool(self._servers) and all(server.is_serving() for server in self._servers)

    @property
    def base_url(self) -> str:
        """What clients are given."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self, *, rather: int = 0, unix_socket: Path | None = None) -> None:
        """Take the port on 127.0.0.1 and, where there is one, on [::1] (I-17).

        Args:
            rather: the port to take where the settings name none and it is free.
            unix_socket: listen here too, for the owner alone; in a folder of theirs.

        Raises:
            EnvironmentUnavailable: `listener_not_bound`.
        """
        context = self.context
        try:
            listeners = _bind(context.settings.port, rather)
            own = [] if unix_socket is None else [listen_owner_only(unix_socket)]
        except OSError as error:
            raise EnvironmentUnavailable(Reason.LISTENER_NOT_BOUND) from error
        self.unix_socket = unix_socket
        loop = asyncio.get_running_loop()
        addresses = [listener.getsockname()[:2] for listener in listeners]
        self.port = addresses[0][1]
        self._hosts = tuple(host for address in addresses for host in loopback_hosts(*address))
        context.set_policy(hosts=self._hosts, routes=OPENAI_ROUTES)
        self._schedule_sweep()
        serve = functools.partial(ClientConnection, context)
        backlog = context.settings.accepted_at_once
        for listener in listeners:
            server = await loop.create_server(serve, sock=listener, backlog=backlog)
            self._servers.append(server)
            listener.listen(LISTEN_BACKLOG)
        for listener in own:
            server = await loop.create_unix_server(serve, sock=listener, backlog=backlog)
            self._servers.append(server)
            listener.listen(LISTEN_BACKLOG)

    async def close(self) -> None:
        """Give the port back and end every connection, unanswered requests included."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self.unix_socket is not None:
            with contextlib.suppress(OSError):
                self.unix_socket.unlink(missing_ok=True)
            self.unix_socket = None
        self.detach()
        await self.context.connections.abort_all()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _schedule_sweep(self) -> None:
        context = self.context
        context.more_deadline = context.now() + context.settings.between_bytes_seconds
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep_deadlines)

    def _sweep_deadlines(self) -> None:
        # One timer for all connections costs a request nothing; deadlines are half a second coarse.
        self._on_sweep()
        self._schedule_sweep()  # first of all, so that no fault below is the last sweep
        context = self.context
        now = context.now()
        for waiter in context.queue.expired(now):
            waiter.refuse_waiting(Reason.QUEUE_DEADLINE)
        for connection in [one for one in context.connections if one.deadline <= now]:
            connection.deadline_passed()
        if context.pool is not None:
            context.pool.close_idle(now)

    # --- the backend -----------------------------------------------------------------------

    def name_model(self, model_id: str) -> None:
        """Take requests that name this model, and list no other, from now on."""
        self.context.name_model(model_id)

    def attach(self, backend: Backend) -> None:
        """Send requests to `backend` from now on, first of all the health checks held for it."""
        self.expect(backend)
        self.attach_expected()

    def expect(self, backend: Backend) -> None:
        """Prepare for `backend`; nothing is sent to it before it is attached (I-07)."""
        self._drop_backend()
        context = self.context
        context.drained = None
        self._expected = backend, BackendRequests(backend)
        context.pool = BackendPool(
            backend.channel,
            self._egress,
            context.now,
            connect_seconds=context.settings.connect_seconds,
        )
        context.set_policy(hosts=self._hosts, routes=backend.routes)

    def connect_expected(self) -> None:
        """Connect to the backend that is expected; its first request finds that made."""
        pool = self.context.pool
        if pool is not None and pool.is_empty:
            pool.open_ahead()

    def disconnect_expected(self) -> None:
        """Close a connection made ahead: a backend that serves one at a time waits on it."""
        if self._expected is not None:
            self.expect(self._expected[0])

    def attach_expected(self) -> None:
        """Attach the backend that is expected, as `attach` does; harmless without one."""
        if self._expected is None:
            return
        context = self.context
        self.backend, context.requests = self._expected
        context.describe_model(self.backend)
        checks, now = list(context.held_checks), context.now()
        context.held_checks.clear()
        for check in checks:
            check.relay_held_check(now)

    def detach(self) -> None:
        """Send no more requests; what waits is refused and what runs is broken off."""
        self._drop_backend()
        self.context.set_policy(hosts=self._hosts, routes=OPENAI_ROUTES)

    def _drop_backend(self) -> None:
        context = self.context
        self.backend = context.requests = self._expected = None
        self._refuse_waiting()
        if context.pool is not None:
            context.pool.close()
            context.pool = None

    async def drain(self, seconds: float) -> bool:
        """Refuse new work and wait for what runs; say whether all of it ended in time."""
        self.context.drained = drained = asyncio.Event()
        self._refuse_waiting()
        if self.context.queue.in_flight == 0:
            return True
        try:
            async with asyncio.timeout(seconds):
                await drained.wait()
        except TimeoutError:
            return False
        return True

    def _refuse_waiting(self) -> None:
        for waiter in self.context.queue.clear():
            waiter.refuse_waiting(Reason.NOT_READY)

    # --- what the companion reads ----------------------------------------------------------

    def snapshot(self) -> AdmissionSnapshot:
        """Return how many requests run and wait."""
        return self.context.queue.snapshot()

    def answers_by_reason(self) -> dict[Reason, int]:
        """Return how many answers there were so far, for each reason."""
        return self.context.metrics.totals()

    def refusals_by_client(self) -> dict[tuple[str, Reason], int]:
        """Return how many answers were refusals or failures, by client's name and reason.

        The name is "" for clients without a key of their own.
        """
        clients = {
            (client.key.name, reason): count
            for client in self.context.clients
            for reason, count in client.answers.items()
        }
        others = self.answers_by_reason()
        for (_, reason), count in clients.items():
            others[reason] = others.get(reason, 0) - count
        rest = {("", reason): count for reason, count in others.items() if count > 0}
        return {who: count for who, count in (clients | rest).items() if who[1] is not Reason.OK}

    def metrics_text(self) -> str:
        """Return the counters as Prometheus text: by reason and path, never by content (I-15)."""
        context = self.context
        text = context.metrics.text(self.snapshot(), len(context.connections))
        return text + "".join(f"{line}\n" for line in context.clients.lines())

    def set_clients(self, keys: Iterable[ClientKey]) -> None:
        """Let these keys in beside the session's token; what runs with any other key ends."""
        self.context.clients.set(keys)
        for connection in list(self.context.connections):
            connection.leave_if_revoked()

    def clients_last_used(self) -> dict[str, float]:
        """Return how many seconds ago each client asked last, by name, if it has asked."""
        now = self.context.now()
        return {
            client.key.name: now - client.last_used
            for client in self.context.clients
            if client.last_used is not None
        }


def _bind(port: int, rather: int) -> list[socket.socket]:
    if not port and rather:
        with contextlib.suppress(OSError):
            return bind_loopback(rather)
    return bind_loopback(port)
