"""Attacker: a program that has the runtime's port first, and gives it up in time.

The first owner keeps a connection that was made before the companion proved the listener. Neither
the backend's key nor a prompt may ever be sent on such a connection (I-07).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
import time
from dataclasses import replace

import pytest
import runtime_parts as parts
import serving_parts

from companion_core.runtime.start import sequence as starting
from companion_core.testing import FakeHealthChecker

pytestmark = pytest.mark.security

SECONDS = 0.15
BIND = "        listener.bind((host, int(port)))"
REUSE = "        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'


class Squatter(threading.Thread):
    """Takes the port, keeps the first connection that stays, and leaves the port."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.received: list[bytes] = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen()
        self.listener.settimeout(SECONDS)

    def run(self) -> None:
        kept = self.first_that_stays()
        self.listener.close()
        if kept is not None:
            kept.settimeout(5)
            with kept, contextlib.suppress(OSError):
                while received := kept.recv(65536):
                    self.received.append(received)
                    kept.sendall(ANSWER)

    def first_that_stays(self) -> socket.socket | None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                connection, _ = self.listener.accept()
                connection.settimeout(0.02)
                try:
                    connection.recv(1)
                except TimeoutError:
                    return connection
                connection.close()
        return None


@pytest.mark.parametrize("announces", [True, False])
def test_the_ports_first_owner_is_sent_nothing(monkeypatch, announces) -> None:
    squatters: list[Squatter] = []
    choose = starting.choose_channel

    def chosen(*arguments):
        channel = choose(*arguments)
        squatters.append(Squatter(channel.port))
        squatters[-1].start()
        return channel

    def planned(plan, _request):
        return plan if announces else replace(plan, ready_text=None)

    async def life(machine) -> str:
        spawner = parts.FakeSpawner(("slow",), channels=frozenset({"tcp"}), alter=planned)
        serving = serving_parts.make_serving(
            machine.folder,
            spawner=spawner,
            health=FakeHealthChecker(),
            binary=str(machine.program),
            binary_sha256=hashlib.sha256(machine.program.read_bytes()).hexdigest(),
        )
        async with serving_parts.serving_with(serving, machine.model):
            assert (await serving_parts.chat(serving))[0] == 200
            assert serving._backend is not None
            return serving._backend.key.reveal()

    # The squatter has to know the port before the runtime does.
    monkeypatch.setattr(starting, "choose_channel", chosen)
    with parts.machine() as machine:
        text = machine.program.read_text()
        assert BIND in text
        machine.program.write_text(text.replace(BIND, REUSE + BIND))  # as most servers do
        key = asyncio.run(life(machine))
    for squatter in squatters:
        squatter.join(10)
        assert squatter.received == []
    assert key
    assert squatters
