"""A gateway before a scripted backend, for tests; loopback and Unix sockets only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason
from companion_core.gateway import Backend, Gateway, GatewaySettings, HealthProbe
from companion_core.gateway.connections import ConnectionTable
from companion_core.gateway.states import IllegalTransition
from companion_core.providers import Dialect, HealthResponse, TcpChannel, UnixChannel
from companion_core.system.secret import Secret

TOKEN = "t" * 43
CHAT = "/v1/chat/completions"

Handler = Callable[
    ["FakeBackend", bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]
]


@dataclass
class Clock:
    """Moves when a test moves it: until then no deadline passes, however slow the machine is."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Conditions:
    def __init__(self) -> None:
        self.lifecycle_verdict: Verdict = OK
        self.resource_verdict: Verdict | None = OK
        self.waiting: list[Callable[[], None]] = []

    def lifecycle(self) -> Verdict:
        return self.lifecycle_verdict

    def resources(self) -> Verdict | None:
        return self.resource_verdict

    def when_observed(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def observe(self, verdict: Verdict | None) -> None:
        """Have an observation come."""
        self.resource_verdict = verdict
        calls, self.waiting = self.waiting, []
        for call in calls:
            call()


def answer(body: bytes = b'{"ok":true}', *, extra: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        extra,
        len(body),
        body,
    )


async def plain_answer(
    _backend: FakeBackend,
    _request: bytes,
    _reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    writer.write(answer())


async def answer_when_released(
    backend: FakeBackend,
    _request: bytes,
    _reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    await backend.release.wait()
    writer.write(answer())


class HoldableEgress(LiveEgress):
    """Connects to the backend at once, unless a test holds that back.

    Attributes:
        asked: a connection was asked for.
        free: connections are made.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()

    def hold(self) -> None:
        self.asked.clear()
        self.free.clear()

    async def connect_backend(self, factory: Any, channel: Any) -> Any:
        self.asked.set()
        await self.free.wait()
        return await super().connect_backend(factory, channel)


@dataclass
class FakeBackend:
    """Records every request it gets and answers as its handler does."""

    handler: Handler = plain_answer
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                self.requests.append(head + body)
                await self.handler(self, head + body, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


@dataclass
class Door:
    gateway: Gateway
    backend: FakeBackend
    conditions: Conditions

    def head(
        self, method: str = "POST", path: str = CHAT, extra: str = "", token: str = TOKEN
    ) -> str:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.gateway.port}\r\n"
            f"Authorization: Bearer {token}\r\n{extra}"
        )

    def post(
        self, body: Any = None, *, path: str = CHAT, extra: str = "", token: str = TOKEN
    ) -> bytes:
        raw = body if isinstance(body, bytes) else json.dumps(body or {"model": "m"}).encode()
        head = self.head(
            path=path,
            token=token,
            extra=f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n{extra}",
        )
        return f"{head}\r\n".encode("latin-1") + raw

    def get(self, path: str, *, extra: str = "", token: str = TOKEN) -> bytes:
        return f"{self.head('GET', path, extra, token)}\r\n".encode("latin-1")

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.gateway.port))

    async def ask(self, raw: bytes) -> Answer:
        async with asyncio.timeout(30):
            client = await self.connect()
            try:
                client.writer.write(raw)
                return await client.read_answer()
            finally:
                await client.close()

    async def ask_running(self) -> asyncio.Task[Answer]:
        """Ask something that the backend does not answer yet; it takes the only place."""
        asked = asyncio.create_task(self.ask(self.post()))
        await eventually(lambda: self.gateway.snapshot().in_flight == 1)
        return asked

    async def ask_waiting(self) -> asyncio.Task[Answer]:
        """Ask something that waits for the place."""
        asked = asyncio.create_task(self.ask(self.post()))
        await eventually(lambda: self.gateway.snapshot().queued == 1)
        return asked

    def probe(self, judge: Any = None, token: str = TOKEN) -> HealthProbe:
        return HealthProbe(
            port=lambda: self.gateway.port,
            token=Secret(token),
            checker=Checker(judge or (lambda response: response.status == 200)),
            served_model=lambda: "served",
            egress=LiveEgress(),
        )


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, name
            headers[name.lower()] = value
        status = int(first.split(" ")[1])
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = await self.reader.readuntil(b"0\r\n\r\n")
        elif status == 100:
            body = b""
        else:
            body = await self.reader.read()
        return Answer(status, headers, body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Checker:
    path = "/health"

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def judge(self, response: HealthResponse) -> bool:
        return self._judge(response)


@contextlib.asynccontextmanager
async def open_door(
    handler: Handler = plain_answer,
    *,
    unix: bool = False,
    clock: Any = None,
    drop_fields: tuple[str, ...] = (),
    served_model: str = "served",
    dialect: Dialect | None = None,
    lifetime: float = 60,
    egress: Egress | None = None,
    **settings: Any,
) -> AsyncIterator[Door]:
    """Open a gateway before a scripted backend; no transition of it may be an illegal one."""
    backend, conditions = FakeBackend(handler), Conditions()
    illegal: list[Any] = []

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), IllegalTransition):
            illegal.append(context)
        loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(note)
    with tempfile.TemporaryDirectory() as folder:
        if unix:
            path = str(Path(folder) / "b.sock")
            server = await asyncio.start_unix_server(backend.serve, path)
            channel: UnixChannel | TcpChannel = UnixChannel(path=path)
        else:
            server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
            channel = TcpChannel(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        more = {} if clock is None else {"clock": clock}
        gateway = Gateway(
            GatewaySettings(**({"token": Secret(TOKEN), "model_id": "m"} | settings)),
            conditions,
            egress=egress or LiveEgress(),
            **more,
        )
        await gateway.start()
        gateway.attach(
            Backend(
                channel=channel,
                served_model=served_model,
                health_path="/health",
                key=Secret("k" * 43),
                drop_fields=drop_fields,
                dialect=dialect or Dialect(),
            )
        )
        try:
            async with asyncio.timeout(lifetime):
                yield Door(gateway, backend, conditions)
        finally:
            await gateway.close()
            server.close()
            backend.release.set()
            for _ in range(5):
                await asyncio.sleep(0)
        assert illegal == []


class NotedConnections(ConnectionTable):
    """A table that tells of every connection in the moment in which it comes."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__(512)
        self._note = note

    def add(self, connection: Any) -> bool:
        self._note(connection)
        return super().add(connection)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the product has no event for what tests look at
            await asyncio.sleep(0.01)


async def soon(condition: Callable[[], bool]) -> None:
    """Look in every pass of the event loop: misses nothing that lasts for one of its moments."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the product has no event for this either
            await asyncio.sleep(0)


def refuse_ram() -> Verdict:
    return refuse(Reason.RAM_OVER_LIMIT)


def refuse_not_ready() -> Verdict:
    return refuse(Reason.NOT_READY)
