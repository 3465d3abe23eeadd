"""What happens to a companion that is soaked: each fault, and the way back from it.

A fault is a method of `Faults` that does its harm, holds it for a while and takes it back. What it
needs of the machine is asked for first; what the machine does not have is named in the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from companion_world import MODELS, Companion, World

__all__ = ["Clock", "Faults", "Keyring", "small_disk"]

Fault = Callable[[], Coroutine[Any, Any, str]]

_DISK_MIB: Final = 24
_SECONDS_OF_A_TOOL: Final = 30
_SWAP_SECONDS: Final = 120
# A runtime that has ended so often is started after 1, 5 and 15 s, and after a fifth time within
# ten minutes not at all; a swap begins the count anew.
_ENDINGS: Final = 3

# Adds so many seconds to two clocks of the process that it is loaded into.
_CLOCK: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long long *jumps;
static int (*ask)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    ask = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("SOAK_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = file < 0 ? MAP_FAILED : mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) jumps = map;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int result = ask(id, now);
    if (result == 0 && jumps && id == CLOCK_BOOTTIME) now->tv_sec += jumps[0];
    if (result == 0 && jumps && id == CLOCK_REALTIME) now->tv_sec += jumps[1];
    return result;
}
"""


class Clock:
    """Two clocks of one process, which jump: the one that counts sleep, and the date.

    Args:
        folder: where the library is built.

    Attributes:
        environment: the variables that put it in place; empty without a C compiler.
    """

    def __init__(self, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        self._asleep = self._ahead = 0
        source, library, jumps = folder / "clock.c", folder / "clock.so", folder / "clock"
        compiler = shutil.which("cc")
        if compiler is None:
            return
        source.write_text(_CLOCK)
        options = ["-shared", "-fPIC", "-O1", "-o", str(library)]
        build = [compiler, *options, str(source), "-ldl"]
        subprocess.run(build, check=True, timeout=_SECONDS_OF_A_TOOL)
        jumps.write_bytes(bytes(16))
        with jumps.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self.environment = {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(jumps)}

    def jump(self, *, asleep: int = 0, ahead: int = 0) -> None:
        """Let so many seconds of sleep pass, and set the date so many seconds ahead."""
        self._asleep += asleep
        self._ahead += ahead
        self._map[:] = struct.pack("qq", self._asleep, self._ahead)


class Keyring:
    """A GNOME Keyring on a bus of its own, which can be killed and unlocked again.

    Attributes:
        environment: the variables by which programs find it.
    """

    def __init__(self, folder: Path) -> None:
        home, run = folder / "home", folder / "keyring"
        for each in (home, run):
            each.mkdir(mode=0o700)
        self._bus = subprocess.Popen(
            ["dbus-daemon", "--session", "--nofork", "--print-address"],  # noqa: S607 - the machine's own
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(run)},
        )
        address = self._bus.stdout.readline().strip() if self._bus.stdout else ""
        self.environment = {
            "DBUS_SESSION_BUS_ADDRESS": address,
            "XDG_RUNTIME_DIR": str(run),
            "HOME": str(home),
        }
        self._daemon: subprocess.Popen[bytes] | None = None
        self.unlock()

    def unlock(self) -> None:
        """Start the daemon and unlock its keyring."""
        self._daemon = subprocess.Popen(
            ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"],  # noqa: S607 - the machine's own
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )
        if self._daemon.stdin is not None:
            self._daemon.stdin.write(b"password")
            self._daemon.stdin.close()

    def kill(self) -> None:
        """Kill the daemon: whoever asks the keychain now finds none that is unlocked."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()

    def close(self) -> None:
        """End it and its bus."""
        self.kill()
        self._bus.kill()
        self._bus.wait()
        if self._bus.stdout is not None:
            self._bus.stdout.close()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk in memory at `folder`; yield whether this person may."""
    folder.mkdir(mode=0o700)
    options = f"size={_DISK_MIB}m,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "soak", str(folder)]
    may = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield may
    finally:
        if may:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)  # noqa: S607 - the machine's own


class Faults:
    """Does harm, and takes it back.

    Args:
        at: the world of the companion.
        companion: which is harmed.
        chance: decides how long.
        clock: of the companion.
        keyring: that it keeps its token in; None for the keychain "memory".
        disk_is_small: its state folder is a disk that can be filled.

    Attributes:
        missing: what the machine does not have, in words.
        short: harm is held for a second or two.
        wrong: what the companion did that it should not have, in words.
    """

    def __init__(
        self,
        at: World,
        companion: Companion,
        chance: random.Random,
        clock: Clock,
        keyring: Keyring | None,
        *,
        disk_is_small: bool,
    ) -> None:
        self.missing: list[str] = []
        self.short = False
        self.wrong: list[str] = []
        self._at = at
        self._companion = companion
        self._chance = chance
        self._clock = clock
        self._keyring = keyring
        self._served = 0
        self._endings = 0
        self.all: list[Fault] = [
            self.kill_runtime,
            self.kill_keeper,
            self.stop_runtime,
            self.stop_keeper,
            self.stop_companion,
            self.swap,
        ]
        if clock.environment:
            self.all += [self.suspend, self.set_date]
        else:
            self.missing.append("a C compiler, for clocks that jump")
        if keyring is not None:
            self.all.append(self.kill_keyring)
        else:
            self.missing.append("gnome-keyring and dbus-daemon, for a keychain that dies")
        if disk_is_small:
            self.all += [self.fill_disk, self.fill_disk_for_swap]
        else:
            self.missing.append("root, for a disk that is full")

    async def before(self, fault: Fault) -> None:
        """Swap first if the runtime has ended too often for `fault` to end it once more."""
        if self._endings >= _ENDINGS and fault != self.swap:
            await self.swap()

    def _seconds(self, least: float, most: float) -> float:
        return 1.0 if self.short else self._chance.uniform(least, most)

    # --- processes ------------------------------------------------------------------------

    async def kill_runtime(self) -> str:
        """SIGKILL for the runtime."""
        self._signal(self._runtime(), signal.SIGKILL)
        self._endings += 1
        return ""

    async def kill_keeper(self) -> str:
        """SIGKILL for the keeper, which is the runtime's guardian."""
        self._signal(self._keepers(), signal.SIGKILL)
        self._endings += 1
        return ""

    async def stop_runtime(self) -> str:
        """SIGSTOP for the runtime, then SIGCONT."""
        return await self._hold(self._runtime(), self._seconds(2, 10))

    async def stop_keeper(self) -> str:
        """SIGSTOP for the keeper, then SIGCONT."""
        return await self._hold(self._keepers(), self._seconds(2, 10))

    async def stop_companion(self) -> str:
        """SIGSTOP for the companion alone: its clients and its runtime go on."""
        return await self._hold([psutil.Process(self._companion.process.pid)], self._seconds(2, 10))

    async def suspend(self) -> str:
        """Stop every process of it, let hours of sleep pass on the clock, and go on."""
        own = psutil.Process(self._companion.process.pid)
        asleep = int(self._chance.choice((45, 600, 7200)))
        await self._hold(
            [own, *own.children(recursive=True)],
            1.0,
            meanwhile=lambda: self._clock.jump(asleep=asleep, ahead=asleep),
        )
        return f"{asleep} s"

    async def set_date(self) -> str:
        """Set the date an hour ahead, then two back."""
        self._clock.jump(ahead=3600)
        await asyncio.sleep(self._seconds(2, 5))
        self._clock.jump(ahead=-7200)
        await asyncio.sleep(self._seconds(2, 5))
        self._clock.jump(ahead=3600)
        return ""

    async def _hold(
        self,
        processes: list[psutil.Process],
        seconds: float,
        *,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> str:
        self._signal(processes, signal.SIGSTOP)
        try:
            meanwhile()
            await asyncio.sleep(seconds)
        finally:
            self._signal(processes, signal.SIGCONT)
        return f"{seconds:.1f} s"

    def _signal(self, processes: list[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _keepers(self) -> list[psutil.Process]:
        own = psutil.Process(self._companion.process.pid)
        return [child for child in own.children() if "keeper" in " ".join(child.cmdline())]

    def _runtime(self) -> list[psutil.Process]:
        """Return what the keepers have started, the newest first."""
        found: list[psutil.Process] = []
        for keeper in self._keepers():
            with contextlib.suppress(psutil.Error):
                found += keeper.children(recursive=True)
        return found[::-1]

    # --- the model, the disk and the keychain ---------------------------------------------

    async def swap(self) -> str:
        """Serve the other model, by `companion up --model`."""
        code, words = await self._swap()
        if code != 0:
            self.wrong.append(f"a swap failed: {words}")
        return words if code else ""

    async def _swap(self) -> tuple[int, str]:
        new = 1 - self._served
        process = await asyncio.create_subprocess_exec(
            *self._at.argv("up", "--model", MODELS[new]),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._at.environment},
        )
        try:
            async with asyncio.timeout(_SWAP_SECONDS):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            return -1, "it did not end"
        code = process.returncode or 0
        if code == 0:
            self._served, self._endings = new, 0
        return code, (errors.decode().strip().splitlines() or [""])[-1]

    async def fill_disk(self) -> str:
        """Fill the disk, kill the runtime, and leave room again: it has to come back."""
        with self._full_disk():
            await self.kill_runtime()
            await asyncio.sleep(self._seconds(2, 5))
        return ""

    async def fill_disk_for_swap(self) -> str:
        """Ask for a swap that has to download to a full disk; the model before serves on."""
        for stored in (self._at.state / "models").rglob("*"):
            held = any(str(stored) == file.path for file in self._open_files())
            if stored.is_file() and not held:
                stored.unlink()
        with self._full_disk():
            code, words = await self._swap()
        return f"exit {code}: {words.partition(': ')[2].partition(': ')[0]}"

    def _open_files(self) -> list[Any]:
        return list(psutil.Process(self._companion.process.pid).open_files())

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        with tempfile.TemporaryFile(dir=self._at.state, buffering=0) as filler:
            try:
                while filler.write(bytes(1 << 16)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            yield

    async def kill_keyring(self) -> str:
        """Kill the keychain's daemon, then the runtime: a restart needs no keychain."""
        if self._keyring is None:
            return ""
        self._keyring.kill()
        await self.kill_runtime()
        await asyncio.sleep(self._seconds(3, 6))
        self._keyring.unlock()
        return ""
