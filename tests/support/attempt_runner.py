"""Start a hostile runtime in a tier, let it make every attempt, and print what got through.

    python attempt_runner.py TIER [alone]

A program of its own, so that it can be run as root and as an ordinary user. `alone`: as where no
namespace can be had. It prints one JSON object: each attempt and how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_attempts as hostile
import psutil
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress

THROUGH, NOT_MADE = "through", "not made"
_TRIES = 6
SOURCE = Path(hostile.__file__).read_text()


class NotingEgress(LiveEgress):
    """The doorway; tells the runtime which process its keeper is."""

    def __init__(self, told: Path) -> None:
        self._told = told
        self.keeper = 0

    def start_process(self, argv: Any, **options: Any) -> subprocess.Popen[bytes]:
        """See `Egress`."""
        started = super().start_process(argv, **options)
        if any(Path(part).name == "keeper.py" for part in argv):
            self.keeper = started.pid
            self._told.with_suffix(".new").write_text(str(started.pid))
            self._told.with_suffix(".new").rename(self._told)
        return started


class Targets:
    """What the person has beside the runtime, and what can be seen of it afterwards."""

    def __init__(self, folder: Path) -> None:
        self.closing = contextlib.ExitStack()
        self.folder = folder
        self.memory = ctypes.create_string_buffer(b"token: x")
        self.written = ctypes.create_string_buffer(b"token: x")
        self.received: set[str] = set()
        self.port_was_open = False
        home = folder / "home"
        (home / "state").mkdir(parents=True)
        (home / "state").chmod(0o700)
        self.files = {
            name: home / name.replace(" ", "-")
            for name in (
                *("diary", "victim file", "mode", "mode 2", "times", "owner", "attribute"),
                "moved",
            )
        }
        for path in self.files.values():
            path.write_text("private")
            path.chmod(0o600)
        self.state = home / "state"
        self.victims = {
            tried.__name__: subprocess.Popen(["/bin/sleep", "600"])
            for tried in hostile.ATTEMPTS.values()
            if re.search(rf"""victim\(["']{tried.__name__}["']""", SOURCE)
        }
        for victim in self.victims.values():
            self.closing.callback(victim.wait)
            self.closing.callback(victim.kill)
        self.marks = {
            name: f"{600000 + os.getpid()}.{index}"
            for index, name in enumerate(("outlive", "outlive the keeper"), 1)
        }
        self._listen()
        self._share()

    def _listen(self) -> None:
        def made(family: int, kind: int, address: Any) -> socket.socket:
            one = self.closing.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind != socket.SOCK_DGRAM:
                one.listen(64)
            one.settimeout(0)
            return one

        unix, inet = socket.AF_UNIX, socket.AF_INET
        self.paths = {name: str(self.folder / name) for name in ("bus", "datagrams", "packets")}
        self.abstract = f"companion-attempt-{os.getpid()}"
        made(unix, socket.SOCK_STREAM, self.paths["bus"])
        made(unix, socket.SOCK_SEQPACKET, self.paths["packets"])
        made(unix, socket.SOCK_STREAM, "\0" + self.abstract)
        self.datagrams = made(unix, socket.SOCK_DGRAM, self.paths["datagrams"])
        self.tcp = made(inet, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.fast = made(inet, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.fast.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        self.udp = made(inet, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.free_port = free.getsockname()[1]

    def _share(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        call = hostile.call
        call("keyctl", 1, None)  # KEYCTL_JOIN_SESSION_KEYRING, a new one
        self.key = f"companion-attempt-{os.getpid()}"
        call("add_key", b"user", self.key.encode(), b"secret", 6, -3)
        self.segment = 0x40000000 | os.getpid()
        segment = libc.shmget(self.segment, 4096, 0o1600)
        semaphores = libc.semget(self.segment, 1, 0o1600)
        messages = libc.msgget(self.segment, 0o1600)
        self.closing.callback(libc.shmctl, segment, 0, None)
        self.closing.callback(libc.semctl, semaphores, 0, 0)
        self.closing.callback(libc.msgctl, messages, 0, None)
        self.queue = f"companion-attempt-{os.getpid()}"
        os.close(call("mq_open", self.queue.encode(), 0o102, 0o600, None))
        self.closing.callback(libc.mq_unlink, b"/" + self.queue.encode())
        self.shared_memory = Path("/dev/shm", self.queue)
        self.shared_memory.write_text("private")
        self.closing.callback(self.shared_memory.unlink)

    def told(self, made: parts.Machine) -> str:
        """Return what the runtime is told of them."""
        root = os.geteuid() == 0
        return json.dumps(
            {
                **{name: str(path) for name, path in self.files.items()},
                **self.paths,
                **self.marks,
                "state": str(self.state),
                "model": str(made.model_file),
                "folder": str(made.folder / "data"),
                "abstract": self.abstract,
                "tcp": self.tcp.getsockname()[1],
                "fast": self.fast.getsockname()[1],
                "udp": self.udp.getsockname()[1],
                "free port": self.free_port,
                "victims": {name: victim.pid for name, victim in self.victims.items()},
                "companion": os.getpid(),
                "descriptor": self.tcp.fileno(),
                "address": ctypes.addressof(self.memory),
                "address 2": ctypes.addressof(self.written),
                "key": self.key,
                "segment": self.segment,
                "queue": self.queue,
                "shared memory": str(self.shared_memory),
                "other group": 1 if root else 0,
                "other user": 65534 if root else 0,
            }
        )

    def receive(self) -> None:
        """Take what was sent to the sockets so far, and see who listens where nobody should."""
        with socket.socket() as asking:
            self.port_was_open |= asking.connect_ex(("127.0.0.1", self.free_port)) == 0
        while True:
            with contextlib.suppress(BlockingIOError):
                connection, _ = self.fast.accept()
                with connection:
                    connection.settimeout(0.5)
                    with contextlib.suppress(OSError):
                        self.received.add(connection.recv(64).decode())
                continue
            break
        for one in (self.datagrams, self.udp):
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.received.add(one.recv(64).decode())

    def judges(self, made: parts.Machine, keeper: int) -> dict[str, Callable[[], object]]:
        """Return, for each attempt that is judged outside, what tells that it got through."""

        def mode(path: Path) -> int:
            return path.stat().st_mode & 0o777

        def ended(name: str) -> Callable[[], object]:
            return lambda: self.victims[name].poll() is not None

        def got(name: str) -> Callable[[], object]:
            return lambda: name in self.received

        def attribute() -> bool:
            with contextlib.suppress(OSError):
                return os.getxattr(self.files["attribute"], "user.x") == b"1"
            return False

        def key_is_there() -> bool:
            with contextlib.suppress(OSError):
                return hostile.call("keyctl", 10, -3, b"user", b"companion-attempt", 0) > 0
            return False

        def pid(name: str) -> int:
            return self.victims[name].pid

        judges = {
            "write_a_file": Path(str(self.files["diary"]) + ".new").exists,
            "shorten_a_file": lambda: not self.files["victim file"].stat().st_size,
            "change_a_mode": lambda: mode(self.files["mode"]) == 0o666,
            "change_a_mode_by_its_second_name": lambda: mode(self.files["mode 2"]) == 0o666,
            "change_the_state_folder": lambda: mode(self.state) == 0o777,
            "change_times": lambda: self.files["times"].stat().st_mtime == 1,
            "change_owner": lambda: self.files["owner"].stat().st_gid == 1,
            "set_attribute": attribute,
            "rename_a_file": lambda: not self.files["moved"].exists(),
            "change_the_models_mode": lambda: mode(made.model_file) == 0o666,
            "kill_by_limit": lambda: (
                resource.prlimit(pid("kill_by_limit"), resource.RLIMIT_CPU) == (0, 0)
            ),
            "limit_the_keeper": lambda: resource.prlimit(keeper, resource.RLIMIT_NOFILE) == (0, 0),
            "stop_the_keeper": lambda: psutil.Process(keeper).status() == psutil.STATUS_STOPPED,
            "write_companions_memory": lambda: self.written.value.startswith(b"STOLEN"),
            "bind_to_a_processor": lambda: (
                os.sched_getaffinity(pid("bind_to_a_processor")) != os.sched_getaffinity(0)
            ),
            "slow_down": lambda: os.getpriority(os.PRIO_PROCESS, pid("slow_down")) == 19,
            "put_to_idle": lambda: os.sched_getscheduler(pid("put_to_idle")) == os.SCHED_IDLE,
            "offer_to_the_killer": lambda: (
                Path(f"/proc/{pid('offer_to_the_killer')}/oom_score_adj").read_text() == "999\n"
            ),
            "new_key": key_is_there,
            "other_port": lambda: self.port_was_open,
            "outlive": lambda: self.outlives("outlive"),
            "outlive_the_keeper": lambda: self.outlives("outlive the keeper"),
        }
        judges |= {name: ended(name) for name in self.victims if name.startswith("kill_by_k")}
        for name in ("thread", "descriptor", "queue", "owner", "ioctl"):
            judges[f"kill_by_{name}"] = ended(f"kill_by_{name}")
        for name in ("datagram", "pair_and_address", "pair_and_message", "pair_by_connect"):
            judges[name] = got(name)
        for name in ("fast_open", "fast_open_message", "udp"):
            judges[name] = got(name)
        return judges

    def outlives(self, name: str) -> bool:
        """Tell whether what was to outlive the companion does."""
        return any(self.left(name))

    def left(self, name: str) -> Iterator[psutil.Process]:
        """Yield what is left of an attempt to outlive."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.marks[name] in process.cmdline():
                    yield process

    def close(self) -> None:
        """End and remove all of it."""
        for name in self.marks:
            for process in self.left(name):
                process.kill()
        self.closing.close()


def run_once(tier: Tier, only: str) -> dict[str, str]:
    """Start a runtime that makes one attempt, or all that need no start of their own."""
    with parts.machine() as made, contextlib.ExitStack() as closing:
        targets = Targets(made.folder)
        closing.callback(targets.close)
        told = targets.told(made)
        program, start = made.program.read_text(), '    print("started"'
        attacks = (
            f"    module = dict(__name__='attempts')\n"
            f"    exec({SOURCE!r}, module)\n"
            f"    module['at']['given model'] = sys.argv[1]\n"
            f"    module['run_all']({told!r}, {only!r})\n"
        )
        assert start in program
        made.program.write_text(program.replace(start, attacks + start, 1))
        egress = NotingEgress(made.folder / "data" / "keeper")
        made.supervisor._egress = egress
        return asyncio.run(_life(made, targets, egress, tier, only))


async def _life(
    made: parts.Machine, targets: Targets, egress: NotingEgress, tier: Tier, only: str
) -> dict[str, str]:
    (made.folder / "data").mkdir(mode=0o700, exist_ok=True)
    results_file = made.folder / "data" / "attempts.json"
    starting = asyncio.ensure_future(
        made.supervisor.start(made.spec(spawner=parts.FakeSpawner(), tier=tier))
    )
    deadline = time.monotonic() + 60
    while not results_file.exists() and not starting.done() and time.monotonic() < deadline:
        targets.receive()
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    seen: dict[str, bool] = {}
    names = {tried.__name__: name for name, tried in hostile.ATTEMPTS.items()}
    judges = targets.judges(made, egress.keeper)
    targets.receive()
    for short, judge in judges.items():
        if not short.startswith("outlive"):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                seen[names[short]] = bool(judge())
    if only != "outlive_the_keeper" and seen.get(names.get(only, "")):
        # A keeper that was taken out of order ends nothing any more: that is the finding.
        for process in (egress.keeper, *made.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    results: dict[str, str] = {}
    if results_file.exists():
        results = json.loads(results_file.read_text())
    with contextlib.suppress(Exception):
        async with asyncio.timeout(10):
            await starting
    with contextlib.suppress(Exception):
        async with asyncio.timeout(10):
            await made.supervisor.stop()
    await asyncio.sleep(0.2)
    for short in ("outlive", "outlive_the_keeper"):
        seen[names[short]] = bool(judges[short]())
    wanted = [names[only]] if only else [n for s, n in names.items() if s not in hostile.ALONE]
    return {
        name: (THROUGH if seen[name] else _refused(results.get(name)))
        if name in hostile.SEEN_OUTSIDE
        else results.get(name, NOT_MADE)
        for name in wanted
    }


def _refused(said: str | None) -> str:
    """Return how an attempt ended that had no effect outside."""
    return "no effect" if said in {None, THROUGH} else str(said)


def main() -> None:
    """Run and print."""
    tier = Tier(sys.argv[1])
    if "alone" in sys.argv[2:]:
        from companion_core.runtime.isolation import confinement  # noqa: PLC0415 - as asked

        confinement.OWN_NAMESPACES = False  # type: ignore[misc] - as where none can be had
    results: dict[str, str] = {}
    for only in ("", *hostile.ALONE):
        for _ in range(_TRIES):
            found = run_once(tier, only)
            if NOT_MADE not in found.values():
                break  # else a look at its sockets fell together with one of its attempts
        results |= found
    print(json.dumps(results))


if __name__ == "__main__":
    main()
