"""Attacker: a runtime that was taken over, and tries everything around it (I-06 to I-08).

Each attack succeeds without isolation, which proves the attack; in each tier it fails where
the tier promises so.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import PROMISES, Promise, Tier
from companion_core.runtime.isolation import confinement

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]


# Runs in the runtime before it serves. Each attack ends in an error or has succeeded.
ATTACKS = """
import ctypes, json
at = json.loads(behaviour[0])
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as attacker:
        attacker.settimeout(5)
        if kind == socket.SOCK_DGRAM:
            attacker.sendto(b"stolen", address)
        else:
            attacker.connect(address)

def remember(signal_number):
    checked(libc.kill(at["parent"], signal_number))

def steal_memory():
    buffer = ctypes.create_string_buffer(8)
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    here = Piece(ctypes.addressof(buffer), 8)
    there = Piece(at["address"], 8)
    checked(libc.process_vm_readv(at["parent"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0))

def outlive():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    os.wait()

attacks = {
    "home file": lambda: open(at["home"]).read(),
    "home folder": lambda: os.listdir(os.path.dirname(at["home"])),
    "home write": lambda: open(at["home"] + ".new", "w").close(),
    "parent environ": lambda: open(f"/proc/{at['parent']}/environ", "rb").read(),
    "parent mem": lambda: open(f"/proc/{at['parent']}/mem", "rb").close(),
    "parent memory": steal_memory,
    "parent root": lambda: os.listdir(f"/proc/{at['parent']}/cwd/"),
    "bus path": lambda: connect(socket.AF_UNIX, at["bus"]),
    "bus abstract": lambda: connect(socket.AF_UNIX, "\\0" + at["abstract"]),
    "bus datagram": lambda: connect(socket.AF_UNIX, at["datagram"], socket.SOCK_DGRAM),
    "net tcp": lambda: connect(socket.AF_INET, ("127.0.0.1", at["tcp"])),
    "net udp": lambda: connect(socket.AF_INET, ("127.0.0.1", at["udp"]), socket.SOCK_DGRAM),
    "signal": lambda: remember(0),
    "outlive": outlive,
}
results = {}
for name, attack in attacks.items():
    try:
        attack()
        results[name] = "succeeded"
    except Exception as error:
        results[name] = type(error).__name__
open("attacks.json", "w").write(json.dumps(results))
"""

PROMISED = {
    Promise.HOME: {"home file", "home folder", "home write"},
    Promise.PARENT: {"parent environ", "parent mem", "parent memory", "parent root"},
    Promise.SESSION_BUS: {"bus path", "bus abstract", "bus datagram"},
    Promise.NETWORK: {"net tcp", "net udp"},
    Promise.SIGNALS: {"signal"},
}


@pytest.fixture
def machine():
    with parts.machine() as made:
        program, start = made.program.read_text(), '    print("started"'
        attack = f'    exec({ATTACKS!r}, {{**globals(), "behaviour": behaviour}})\n'
        assert start in program
        made.program.write_text(program.replace(start, attack + start))
        yield made


@pytest.fixture
def targets(tmp_path):
    """What the person has beside the runtime: files, a bus, a network, and this process."""
    home = tmp_path / "home" / "diary.txt"
    home.parent.mkdir()
    home.write_text("private")
    bus, abstract, datagram = (socket.socket(socket.AF_UNIX, kind) for kind in (1, 1, 2))
    tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    memory = ctypes.create_string_buffer(b"token: x")
    name = f"companion-test-{os.getpid()}"
    bus.bind(str(tmp_path / "bus"))
    abstract.bind("\0" + name)
    datagram.bind(str(tmp_path / "log"))
    tcp.bind(("127.0.0.1", 0))
    udp.bind(("127.0.0.1", 0))
    for listener in (bus, abstract, tcp):
        listener.listen()
    udp.settimeout(0)
    yield (
        udp,
        {
            "home": str(home),
            "bus": str(tmp_path / "bus"),
            "abstract": name,
            "datagram": str(tmp_path / "log"),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "parent": os.getpid(),
            "address": ctypes.addressof(memory),
        },
    )
    for each in (bus, abstract, datagram, tcp, udp):
        each.close()


def attack(machine, targets, tier) -> dict[str, str]:
    udp, targets = targets

    async def life() -> dict[str, str]:
        spawner = parts.FakeSpawner((json.dumps(targets),))
        backend = await machine.supervisor.start(machine.spec(spawner=spawner, tier=tier))
        assert backend.tier is tier
        results = json.loads((Path(backend.channel.path).parent / "attacks.json").read_text())
        tree = machine.supervisor.tree()
        await machine.supervisor.stop()
        assert not any(map(parts.alive, tree))
        return results

    results = asyncio.run(life())
    try:  # sending proves nothing: another network has a loopback of its own
        udp.recv(16)
    except BlockingIOError:
        results["net udp"] = "never arrived"
    assert machine.leftovers() == []  # the process that was to outlive it did not
    return results


def test_without_isolation_every_attack_succeeds(machine, targets, monkeypatch) -> None:
    monkeypatch.setattr(confinement, "OWN_NAMESPACES", False)
    assert set(attack(machine, targets, Tier.NONE).values()) == {"succeeded"}


@pytest.mark.parametrize("tier", [Tier.BUBBLEWRAP, Tier.LANDLOCK])
def test_what_a_tier_promises_fails_for_the_attacker(machine, targets, tier, require_tier) -> None:
    require_tier(tier)
    results = attack(machine, targets, tier)
    promised = set().union(*(PROMISED.get(promise, set()) for promise in PROMISES[tier]))
    assert {name for name in promised if results[name] == "succeeded"} == set()
    assert results["outlive"] == "succeeded"  # it may start a process, which ends with it
