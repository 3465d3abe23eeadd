"""The core's own `process` probe: what the runtime's processes use (I-12).

On Linux from `/proc`, elsewhere through psutil. Only the given processes are read; none are listed.
Video memory is the devices' total, of every program that uses them: a driver is never asked for
the list of processes. `ProbeFailed` is raised for a number that cannot be had.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from companion_core.hookspecs import hookimpl
from companion_core.providers import ProbeFailed, ProbeTarget, ResourceObservation
from companion_core.runtime.process.proc_files import read_entry, threads_of
from companion_core.runtime.resources.shared_memory import shared_bytes
from companion_core.system.os_compat import CLOSE_ON_EXEC, read_at

__all__ = ["ProcessProbe", "companion_probe", "free_vram", "has_driver"]

# Two readings of the processor time must be at least so far apart to say anything.
MIN_INTERVAL_SECONDS: Final = 0.05
# Of the runtime's tree, as in a control group of its own: far above what a runtime has. To read
# more of them takes longer than an observation may.
_MOST_THREADS: Final = 4096
_STAT_BYTES: Final = 4096
_SHARED: Final = re.compile(rb"^RssShmem:\s+(\d+) kB$", re.MULTILINE)
_NVIDIA_DEVICE: Final = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one process has used.

    Attributes:
        start: tells it from a later process with the same number.
        cpu_seconds: its own processor time.
        ram_bytes: its resident memory.
        shared_bytes: the part of that which other processes may share.
        reaped_seconds: the processor time of its children that have ended and were waited for.
        threads: how many it has.
    """

    start: float
    cpu_seconds: float
    ram_bytes: int
    shared_bytes: int = 0
    reaped_seconds: float = 0.0
    threads: int = 1


class ProcessProbe:
    """Sums RAM, VRAM and processor time of a process tree; `cpu_percent` is of the machine."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        read_vram: Callable[[], int] | None = None,
        most_threads: int = _MOST_THREADS,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._read_vram = _read_vram if read_vram is None else read_vram
        self._most_threads = most_threads
        self._lock = threading.Lock()
        self._files = _StatFiles()
        self._last: dict[int, _Reading] = {}
        self._last_at: float | None = None

    def observe(self, target: ProbeTarget) -> ResourceObservation:
        """Return what the processes use together.

        Processor use is counted since the last observation or, the first time, within a short
        pause. A process that came meanwhile counts with all that it has used, and one that came
        and ended by its parent, if that waited for it. Memory that several share counts once.
        Asked about no process, it closes the files of the earlier ones.

        Raises:
            ProbeFailed: no process is left, there are too many, or a number cannot be read.
        """
        with self._lock:
            self._files.close_others(target.pids)
            if not 0 < len(target.pids) <= self._most_threads:
                raise ProbeFailed
            if self._last_at is None:
                self._last, self._last_at = _read_all(target.pids, self._files), self._clock()
            short = MIN_INTERVAL_SECONDS - (self._clock() - self._last_at)
            if short > 0:
                self._sleep(short)
            readings, now = _read_all(target.pids, self._files), self._clock()
            if sum(reading.threads for reading in readings.values()) > self._most_threads:
                raise ProbeFailed
            elapsed = now - self._last_at
            used = self._used(readings)
            self._last, self._last_at = readings, now
        if elapsed <= 0:
            raise ProbeFailed
        share = 100 * used / elapsed / (os.cpu_count() or 1)
        return ResourceObservation(
            ram_bytes=_memory(readings),
            vram_bytes=self._read_vram(),
            cpu_percent=min(max(share, 0.0), 100.0),
        )

    def _used(self, readings: Mapping[int, _Reading]) -> float:
        """Return the seconds of processor time since the last readings.

        What a child used becomes its parent's when that waits for it, so the whole sum grows by
        what was used. Where nobody waited the sum loses the child, and those that live tell more.
        """
        living = 0.0
        for pid, reading in readings.items():
            before = self._last.get(pid)
            known = before is not None and before.start == reading.start
            living += reading.cpu_seconds - (before.cpu_seconds if before and known else 0.0)
        # A process that is new to the tree brings the children that it had before with it.
        return max(living, _all_seconds(readings) - _all_seconds(self._last))


def _all_seconds(readings: Mapping[int, _Reading]) -> float:
    return sum(reading.cpu_seconds + reading.reaped_seconds for reading in readings.values())


def _memory(readings: Mapping[int, _Reading]) -> int:
    alone = sum(reading.ram_bytes - reading.shared_bytes for reading in readings.values())
    seen = max(reading.shared_bytes for reading in readings.values())
    return alone + max(seen, shared_bytes(readings))


@hookimpl
def companion_probe() -> ProcessProbe:
    """Register the probe that every system has."""
    return ProcessProbe()


class _StatFiles:
    """Keeps `/proc/PID/stat` of each process open, which is five times as fast to read again.

    An open file belongs to its process: it never shows a later process with the same number.
    """

    def __init__(self) -> None:
        self._open: dict[int, int] = {}

    def read(self, pid: int) -> bytes:
        if pid not in self._open:
            self._open[pid] = os.open(f"/proc/{pid}/stat", os.O_RDONLY | CLOSE_ON_EXEC)
        try:
            return read_at(self._open[pid], _STAT_BYTES, 0)
        except OSError:
            os.close(self._open.pop(pid))
            raise

    def close_others(self, pids: tuple[int, ...]) -> None:
        """Close the files of all other processes."""
        for pid in self._open.keys() - set(pids):
            os.close(self._open.pop(pid))

    def __del__(self) -> None:
        self.close_others(())


def _read_status(pid: int) -> bytes:
    """Read `/proc/PID/status`; it is not kept open, one descriptor a process is enough."""
    descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | CLOSE_ON_EXEC)
    try:
        return os.read(descriptor, _STAT_BYTES)
    finally:
        os.close(descriptor)


def _read_all(pids: tuple[int, ...], files: _StatFiles) -> dict[int, _Reading]:
    def read(pid: int) -> _Reading | None:
        return _read_linux(pid, files) if sys.platform == "linux" else _read_elsewhere(pid)

    readings = {pid: reading for pid in pids if (reading := read(pid)) is not None}
    if not readings:
        raise ProbeFailed
    return readings


def _read_linux(pid: int, files: _StatFiles) -> _Reading | None:
    """Read `/proc/PID/stat` and `status` (proc(5)).

    Of the first utime, stime, cutime, cstime and starttime in ticks and rss in pages, of the second
    what is shared memory of that, in KiB. Of a process whose first thread has ended, another one
    tells the memory.
    """
    try:
        fields = files.read(pid).rsplit(b")", 1)[1].split()
        pages, shared = int(fields[21]), _SHARED.search(_read_status(pid))
        if not pages and int(fields[17]) > 1:
            pages, shared = _memory_of_threads(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError) as error:
        raise ProbeFailed from error
    if sys.platform == "win32":
        return None
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    return _Reading(
        start=int(fields[19]) / ticks,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / ticks,
        ram_bytes=pages * page,
        shared_bytes=min(int(shared[1]) * 1024 if shared else 0, pages * page),
        reaped_seconds=(int(fields[13]) + int(fields[14])) / ticks,
        threads=int(fields[17]),
    )


def _memory_of_threads(pid: int) -> tuple[int, re.Match[bytes] | None]:
    """Return the resident pages of a process whose first thread has ended, and the shared part."""
    for thread in map(int, threads_of(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended too
            fields = read_entry(f"/proc/{thread}/stat").rsplit(b")", 1)[1].split()
            if pages := int(fields[21]):
                return pages, _SHARED.search(_read_status(thread))
    return 0, None


def _read_elsewhere(pid: int) -> _Reading | None:
    import psutil  # noqa: PLC0415 - needed only on systems without /proc

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return _Reading(
                start=process.create_time(),
                cpu_seconds=times.user + times.system,
                ram_bytes=process.memory_info().rss,
            )
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError) as error:
        raise ProbeFailed from error


def has_driver() -> bool:
    """Tell whether there may be an NVIDIA driver to ask; on Windows only asking it shows."""
    if sys.platform == "darwin":
        return False  # video memory is ordinary memory there and counts as RAM
    return sys.platform != "linux" or _NVIDIA_DEVICE.exists()


def free_vram() -> int:
    """Return the free bytes of the accelerators; 0 without a driver to ask."""
    return _ask_driver(_sum_free)


def _read_vram() -> int:
    """Return the bytes of video memory that all programs use; 0 without an NVIDIA driver.

    The driver tells single processes' shares only as a list of every process that uses the device,
    and what others run is none of the companion's business (I-12).
    """
    return _ask_driver(_sum_used)


def _ask_driver(question: Callable[[ModuleType], int]) -> int:
    if not has_driver():
        return 0
    pynvml = importlib.import_module("pynvml")  # takes 46 ms, and is needed only with a driver
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if sys.platform == "win32" and error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return 0
        raise ProbeFailed from error
    try:
        return question(pynvml)
    except pynvml.NVMLError as error:
        raise ProbeFailed from error
    finally:
        pynvml.nvmlShutdown()


def _sum_free(nvml: ModuleType) -> int:
    devices = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    return sum(int(nvml.nvmlDeviceGetMemoryInfo(device).free) for device in devices)


def _sum_used(nvml: ModuleType) -> int:
    devices = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    return sum(int(nvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
