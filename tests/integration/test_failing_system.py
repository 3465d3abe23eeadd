"""Whatever call of the system fails in a life of a companion, its end is clean and has a reason.

`make test` fails a sample of the calls; `make test-failing-system` fails every one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from failing_system import ERRORS, FailingEgress, failing_system
from runtime_parts import within

import companion_core.companion as companion_module
from companion_core.authority.memory_keychain import MemoryKeychain
from companion_core.companion import Companion
from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.control.client import InstanceLock
from companion_core.decisions.isolation import Tier
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import Chosen, ChosenRuntime
from companion_core.providers import ResourceLimits
from companion_core.serving.assembly import AuthorityProviders, RuntimeProviders
from companion_core.testing import (
    FakeDownloader,
    FakeHealthChecker,
    FakeProbe,
    FakeSpawner,
    write_fake_runtime,
)
from companion_core.testing.publisher import FakePublisher, manifest_document

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="the calls of Linux"),
]

URL = "https://models.example.org/companion/tiny.gguf"
MODEL = b"GGUF, as far as this runtime cares"
LIMITS = ResourceLimits(max_ram_bytes=2**40, max_vram_bytes=None, max_cpu_percent=100)
SAMPLE = 24
WHOLE = os.environ.get("COMPANION_TEST_EVERY_CALL") == "1"
SECONDS = 60


class World:
    """A folder with a signed manifest, a program and a state folder; all parts are in memory."""

    def __init__(self, folder: Path) -> None:
        self.program = write_fake_runtime(folder / "runtime")
        self.state = folder / "state"
        publisher = FakePublisher()
        now = dt.datetime.now(dt.UTC)
        document = manifest_document(
            URL,
            MODEL,
            issued=(now - dt.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            expires=(now + dt.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        manifest = folder / "manifest.json"
        manifest.write_bytes(publisher.envelope(document))
        manifest.chmod(0o600)
        self.config = parse_config(
            {
                "manifest": {"url": manifest.as_uri(), "trusted_keys": [publisher.public_key]},
                "model": {"id": "tiny"},
                "runtime": {
                    "threads": 1,
                    "context_length": 512,
                    "binary_sha256": hashlib.sha256(self.program.read_bytes()).hexdigest(),
                },
            }
        )

    def providers(self, *_: Any) -> tuple[AuthorityProviders, RuntimeProviders]:
        def chosen(provider: Any) -> Any:
            return Chosen(plugin="test", provider=provider)

        runtime = RuntimeProviders(
            chosen=ChosenRuntime(
                spawn=chosen(FakeSpawner()),
                download=chosen(FakeDownloader({URL: MODEL})),
                health=chosen(FakeHealthChecker()),
                probe=chosen(FakeProbe()),
                modules=frozenset(),
            ),
            binary=str(self.program),
            limits=LIMITS,
            tier=Tier.NONE,
        )
        return AuthorityProviders(keychain=chosen(MemoryKeychain())), runtime

    async def live(self, egress: Any) -> None:
        """Start, have the runtime end and start again, and stop."""
        async with Companion.open(self.config, state_dir=self.state, egress=egress) as companion:
            first = companion.status().runtime
            if first is None or not companion.availability().ok:
                return
            os.kill(first.pid, signal.SIGKILL)
            for _ in range(500):
                await asyncio.sleep(0.01)
                again = companion.status().runtime
                ended = companion.status().gave_up is not None
                if ended or companion._lifetime.stop_requested.is_set():
                    return
                if again is not None and again.pid != first.pid and companion.availability().ok:
                    return

    def processes(self) -> list[int]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and (
                    str(self.program) in process.cmdline() or "keeper.py" in str(process.cmdline())
                ):
                    found.append(process.pid)
        return found


def life_with(fail_at: int | None, number: int = errno.EIO) -> tuple[list[str], str]:
    """Live once in a new folder; return the calls, and what was wrong with the end."""
    with tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as folder:
        world = World(Path(folder))
        wrong: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(companion_module, "assemble", world.providers)
            with failing_system(fail_at, number) as system:

                async def life() -> None:
                    loop = asyncio.get_running_loop()
                    loop.set_exception_handler(
                        lambda _loop, context: wrong.append(f"not handled: {context}")
                    )
                    async with asyncio.timeout(SECONDS):
                        await world.live(FailingEgress(system))

                try:
                    asyncio.run(life())
                except CompanionError as error:
                    if error.reason is Reason.INTERNAL_FAULT:
                        wrong.append("internal_fault")
                except BaseException as error:
                    wrong.append(f"{type(error).__name__}: {error}")
        within(lambda: not world.processes(), 5)
        if left := world.processes():
            wrong.append(f"{len(left)} processes are left")
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        lock = InstanceLock(InstancePaths(world.state).lock_file)
        if InstancePaths(world.state).folder.is_dir():
            try:
                lock.acquire()
            except CompanionError as error:
                wrong.append(f"the lock: {error.reason}")
            lock.release()
        return system.calls, "; ".join(wrong)


@pytest.mark.timeout(7200 if WHOLE else 300)
def test_each_end_is_clean_whatever_call_fails() -> None:
    calls, wrong = life_with(None)
    assert wrong == ""
    assert any("start_process" in call for call in calls)
    places = list(dict.fromkeys(calls))  # each place in the code, at its first call
    chosen = [calls.index(place) for place in places]
    if not WHOLE:
        step = max(1, len(chosen) // SAMPLE)
        shift = dt.datetime.now(dt.UTC).toordinal() % step  # other calls each day
        chosen = chosen[shift::step]
    faults = {}
    for count, at in enumerate(chosen):
        for number in ERRORS if WHOLE else (ERRORS[count % len(ERRORS)],):
            _, wrong = life_with(at, number)
            if wrong:
                faults[f"{calls[at]} {errno.errorcode[number]}"] = wrong
                print(calls[at], errno.errorcode[number], wrong, flush=True)
    assert faults == {}, json.dumps(faults, indent=1)
