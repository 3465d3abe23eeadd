"""Attacker: a runtime that was taken over and puts another program where its listener was.

Any program of the person's may answer there. None of them may be sent a byte: no prompt, no
health check and no backend key (I-07). The runtime is not trusted any longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import runtime_parts as parts
import serving_parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.providers import BackendRequest
from companion_core.runtime.isolation import probe_isolation
from companion_core.testing import FakeHealthChecker

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]

ON_SIGNAL = "signal.signal(signal.SIGUSR1, listen_wide)"
LISTENING = "    listener.listen()\n    return listener"
BIND = "        listener.bind((host, int(port)))"
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
UNIX, TCP = frozenset({"unix"}), frozenset({"tcp"})


class Bystander(threading.Thread):
    """Another program's listener, which would answer any request."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self.received: list[bytes] = []
        self.listener = listener
        self.listener.listen()
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            with connection, contextlib.suppress(OSError):
                while received := connection.recv(65536):
                    self.received.append(received)
                    connection.sendall(ANSWER)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join(10)


def bound_to(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


@pytest.fixture(params=[Tier.BUBBLEWRAP, Tier.LANDLOCK, Tier.NONE])
def tier(request: pytest.FixtureRequest, require_real: Any) -> Tier:
    working = {state.tier for state in probe_isolation(LiveEgress()) if state.works}
    tier: Tier = request.param
    require_real(tier.value, tier is Tier.NONE or tier in working)
    return tier


@pytest.fixture
def bystander(machine: parts.Machine) -> Iterator[Bystander]:
    made = Bystander(bound_to(machine.folder / "other.sock"))
    yield made
    made.close()


def change(machine: parts.Machine, old: str, new: str) -> None:
    """Write the program of a runtime that does something else, too."""
    text = machine.program.read_text()
    assert old in text
    machine.program.write_text(text.replace(old, new))


def swaps(machine: parts.Machine, code: str) -> None:
    """Have the runtime carry out `code` on SIGUSR1; `path` is its socket's, `other` another's."""
    body = f"path, other = sys.argv[2], {str(machine.folder / 'other.sock')!r}; {code}"
    change(machine, ON_SIGNAL, f"signal.signal(signal.SIGUSR1, lambda *_: exec({body!r}))")


def serving_of(machine: parts.Machine, spawner: Any, tier: Tier = Tier.NONE) -> Any:
    return serving_parts.make_serving(
        machine.folder,
        spawner=spawner,
        health=FakeHealthChecker(),
        binary=str(machine.program),
        binary_sha256=hashlib.sha256(machine.program.read_bytes()).hexdigest(),
        tier=tier,
    )


async def is_told_and_replaced(serving: Any, pid: int, *reasons: Reason) -> None:
    """See what follows, whether a request or a health check found it: the reason, a new runtime."""
    await serving_parts.chat(serving)
    await serving_parts.until(lambda: serving.last_ending is not None)
    assert serving.last_ending.reason in (reasons or {Reason.BACKEND_FOREIGN})
    await serving_parts.until(lambda: serving.lifecycle().ok and serving._backend.pid != pid)
    assert (await serving_parts.chat(serving))[0] == 200


def test_a_link_to_another_programs_socket_leads_nowhere(machine, tier, bystander) -> None:
    swaps(machine, "os.rename(path, path + '.aside'); os.symlink(other, path)")

    async def life() -> None:
        serving = serving_of(machine, parts.FakeSpawner(channels=UNIX), tier)
        async with serving_parts.serving_with(serving, machine.model):
            assert (await serving_parts.chat(serving))[0] == 200
            pid, path = serving._backend.pid, Path(serving._backend.channel.path)
            os.kill(pid, signal.SIGUSR1)
            await parts.until(lambda: path.is_symlink() or serving.last_ending)
            await is_told_and_replaced(serving, pid)

    asyncio.run(life())
    assert bystander.received == []


@pytest.mark.usefixtures("each_event_loop")
@pytest.mark.parametrize(
    "code",
    [
        "os.rename(other, path)",
        "os.unlink(path); os.link(other, path)",
    ],
    ids=["renamed", "linked"],
)
def test_another_programs_socket_in_its_place_is_sent_nothing(machine, code, bystander) -> None:
    swaps(machine, code)

    async def life() -> None:
        serving = serving_of(machine, parts.FakeSpawner(channels=UNIX))
        async with serving_parts.serving_with(serving, machine.model):
            pid, path = serving._backend.pid, Path(serving._backend.channel.path)
            own = path.stat().st_ino  # noqa: ASYNC240 - no disk
            os.kill(pid, signal.SIGUSR1)
            await parts.until(lambda: not path.exists() or path.stat().st_ino != own)
            await is_told_and_replaced(serving, pid)

    asyncio.run(life())
    assert bystander.received == []


def test_another_program_that_listens_there_itself_is_sent_nothing(machine) -> None:
    async def life() -> None:
        serving = serving_of(machine, parts.FakeSpawner(channels=UNIX))
        async with serving_parts.serving_with(serving, machine.model):
            pid, path = serving._backend.pid, Path(serving._backend.channel.path)
            os.unlink(path)  # noqa: PTH108 - no disk
            bystander = Bystander(bound_to(path))
            await is_told_and_replaced(serving, pid)
            bystander.close()
            assert bystander.received == []

    asyncio.run(life())


DAEMON = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if os.fork():
    os._exit(0)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    while received := connection.recv(65536):
        print("received", len(received), flush=True)
"""


def test_a_listener_whose_process_has_ended_is_not_the_runtimes(machine) -> None:
    """Any process may have its number by now, one of the runtime's own tree too."""
    path = machine.folder / "other.sock"

    async def life() -> None:
        serving = serving_of(machine, parts.FakeSpawner(channels=UNIX))
        async with serving_parts.serving_with(serving, machine.model):
            pid = serving._backend.pid
            path.rename(serving._backend.channel.path)
            await is_told_and_replaced(serving, pid)

    with subprocess.Popen([sys.executable, "-c", DAEMON, str(path)], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"listening\n"
        child = next(process.pid for process in psutil.process_iter() if _is(process))
        try:
            asyncio.run(life())
        finally:
            os.kill(child, signal.SIGKILL)
        assert it.stdout.read() == b""


def _is(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and DAEMON in process.cmdline()
    return False


CLOSES = "_open_sockets[-1].shutdown(2); _open_sockets[-1].close(); "
# A child takes the same address and port in a network of its own, where it disturbs nobody.
LISTENS_ELSEWHERE = """
import ctypes, fcntl, struct
if os.fork() == 0:
    if ctypes.CDLL(None).unshare(0x50000000):  # CLONE_NEWUSER, CLONE_NEWNET
        print("no network", flush=True)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    elsewhere = socket.create_server(own)
    print("left", flush=True)
    time.sleep(3600)
"""


def test_another_program_that_takes_the_port_is_sent_nothing(machine, tier) -> None:
    """The thief would be sent the backend's key with the first request."""
    port_is_taken(machine, tier, CLOSES + "print('left', flush=True)")


def test_the_same_port_in_another_network_proves_nothing(machine, require_real) -> None:
    """The tree listens on this address and port all the time, where nobody connects to it."""
    own = "own = _open_sockets[-1].getsockname(); "
    port_is_taken(machine, Tier.NONE, own + CLOSES + LISTENS_ELSEWHERE, require_real)


def port_is_taken(machine: Any, tier: Tier, code: str, require_real: Any = None) -> None:
    """Have the runtime leave its port to another program by `code`, which prints "left"."""
    reuse = "listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)"  # as most servers do
    change(machine, BIND, f"        {reuse}\n        _open_sockets.append(listener)\n{BIND}")
    swaps(machine, code)
    change(
        machine,
        "        client, _ = listener.accept()",
        "        try:\n            client, _ = listener.accept()\n"
        "        except OSError:\n            time.sleep(1); continue",
    )

    async def life() -> None:
        serving = serving_of(machine, parts.FakeSpawner(channels=TCP), tier)
        async with serving_parts.serving_with(serving, machine.model):
            assert (await serving_parts.chat(serving))[0] == 200
            pid, channel = serving._backend.pid, serving._backend.channel
            port = getattr(
                channel, "listener", channel
            ).port  # also the port in a network of its own
            os.kill(pid, signal.SIGUSR1)
            await parts.until(lambda: {"left", "no network"} & set(serving._supervisor.last_lines))
            if require_real is not None:
                lines = serving._supervisor.last_lines
                require_real("network namespaces for everybody", "no network" not in lines)
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            bystander = Bystander(listener)
            # The read-back of a health round may have come first, and has a reason of its own.
            reasons = (
                Reason.BACKEND_FOREIGN,
                Reason.HEALTH_FAILED,
                Reason.RUNTIME_LISTENS_WIDE,
            )
            await serving_parts.chat(serving)
            assert bystander.received == []
            await is_told_and_replaced(serving, pid, *reasons)
            bystander.close()
            assert bystander.received == []

    asyncio.run(life())


def unannounced(plan: Any, _request: Any) -> Any:
    return replace(plan, ready_text=None)


def with_prepare(plan: Any, _request: Any) -> Any:
    return replace(plan, prepare=(BackendRequest(method="POST", path="/create", json="{}"),))


@pytest.mark.parametrize("alter", [None, unannounced, with_prepare])
def test_a_start_connects_to_no_other_program(machine, alter, bystander) -> None:
    """Neither the readiness probe, nor a preparation, nor the first health check."""
    other = str(machine.folder / "other.sock")
    change(machine, LISTENING, f"    os.rename({other!r}, address)\n{LISTENING}")
    spawner = parts.FakeSpawner(channels=UNIX, **({"alter": alter} if alter else {}))

    async def life() -> None:
        async with serving_parts.serving_with(serving_of(machine, spawner), machine.model):
            pass

    with pytest.raises(CompanionError) as caught:
        asyncio.run(life())
    assert caught.value.reason is Reason.BACKEND_FOREIGN
    assert machine.leftovers() == []
    assert bystander.received == []


WORKER = """
    if os.fork() == 0:
        return listener
    time.sleep(_FOREVER_SECONDS)
"""


async def answers_thrice(machine, tier) -> None:
    serving = serving_of(machine, parts.FakeSpawner(channels=UNIX), tier)
    async with serving_parts.serving_with(serving, machine.model):
        for _ in range(3):
            assert (await serving_parts.chat(serving))[0] == 200


def test_a_worker_may_accept_what_another_process_of_the_tree_listens_on(machine, tier) -> None:
    change(machine, LISTENING, "    listener.listen()" + WORKER)

    asyncio.run(answers_thrice(machine, tier))


def test_the_worker_may_be_the_one_that_listens(machine, tier) -> None:
    waits = "    if os.fork():\n        time.sleep(_FOREVER_SECONDS)\n"
    change(machine, LISTENING, waits + LISTENING)

    asyncio.run(answers_thrice(machine, tier))
