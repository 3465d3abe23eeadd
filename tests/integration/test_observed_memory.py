"""What a runtime uses is seen, however it holds it: real processes and the real probe (I-12)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from companion_core.providers import ProbeFailed, ProbeTarget
from companion_core.runtime.isolation import SandboxPolicy, bubblewrap
from companion_core.runtime.resources.probe import ProcessProbe

pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MIB = 2**20
SIZE = 96 * MIB

# Each holds SIZE bytes in a way of its own and says so.
BY_DESCRIPTOR = f"import os; fd = os.memfd_create('x'); os.write(fd, bytes({SIZE}))"
BY_MAPPING = (
    f"import mmap; m = mmap.mmap(-1, {SIZE})\n"
    f"for at in range(0, {SIZE}, 4096): m[at] = 1\n"
    "m.madvise(mmap.MADV_DONTNEED)"  # it shows nothing of it any more
)
SHARED = (
    f"import mmap, os; m = mmap.mmap(-1, {SIZE})\n"
    "others = [os.fork() for _ in range(2)]\n"
    f"for at in range(0, {SIZE}, 4096): m[at] = 1\n"
)
SAY_AND_WAIT = "\nprint('there', flush=True)\nimport sys; sys.stdin.read()"
# A process shows of itself what its first thread has: here another one has it.
_IN_A_THREAD = (
    "import ctypes, mmap, os, sys, threading\nlibc = ctypes.CDLL(None)\n"
    "def work():\n"
    "    {held}\n"
    "    print('there', flush=True)\n"
    "    sys.stdin.read()\n"
    "    os._exit(0)\n"
    "thread = threading.Thread(target=work)\nthread.start()\n{first}"
)
_FIRST_ENDS = "import platform\nlibc.syscall({'x86_64': 60}.get(platform.machine(), 93), 0)"
_FIRST_WAITS = "thread.join()"
_FILE = f"fd = os.memfd_create('x'); os.write(fd, bytes({SIZE}))"
_MAPPED = f"m = mmap.mmap(-1, {SIZE}); m[:] = bytes({SIZE}); m.madvise(mmap.MADV_DONTNEED)"
IN_A_THREAD = {
    "resident": _IN_A_THREAD.format(held=f"x = b'x' * {SIZE}", first=_FIRST_ENDS),
    "by descriptor": _IN_A_THREAD.format(held=_FILE, first=_FIRST_ENDS),
    "by mapping": _IN_A_THREAD.format(held=_MAPPED, first=_FIRST_ENDS),
    "own table": _IN_A_THREAD.format(held=f"libc.unshare(0x400); {_FILE}", first=_FIRST_WAITS),
}
# No one of them lives long enough to be looked at twice.
WORKERS = """
import os, select, sys, time
print('there', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    if os.fork() == 0:
        end = time.process_time() + 0.03
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
"""


@contextmanager
def running(*command: str, **options: object) -> Iterator[int]:
    with subprocess.Popen(
        [*command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as child:
        assert child.stdout.readline() == b"there\n"
        try:
            yield child.pid
        finally:
            child.communicate(b"\n")  # all of its processes read this end of a line, or its end


@pytest.fixture
def observed() -> Callable[..., int]:
    probe = ProcessProbe(read_vram=lambda: 0)
    return lambda *pids: probe.observe(ProbeTarget(pids=pids)).ram_bytes


@pytest.mark.parametrize("held", [BY_DESCRIPTOR, BY_MAPPING])
def test_memory_that_the_process_does_not_show_is_counted(held, observed) -> None:
    with running(sys.executable, "-IS", "-c", held + SAY_AND_WAIT) as pid:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        assert resident < SIZE
        assert SIZE <= observed(pid) < SIZE + 64 * MIB


@pytest.mark.parametrize("held", IN_A_THREAD)
def test_what_the_first_thread_does_not_show_is_counted(held, observed) -> None:
    with running(sys.executable, "-IS", "-c", IN_A_THREAD[held]) as pid:
        if held != "own table":
            stat = Path(f"/proc/{pid}/stat")
            until = time.monotonic() + 10
            while ") Z " not in stat.read_text() and time.monotonic() < until:
                time.sleep(0.01)
            assert ") Z " in stat.read_text()
        assert SIZE <= observed(pid) < SIZE + 64 * MIB


def test_a_crowd_is_not_observed() -> None:
    threads = (
        "import threading\nstop = threading.Event()\n"
        "for _ in range(20): threading.Thread(target=stop.wait, daemon=True).start()"
    )
    probe = ProcessProbe(read_vram=lambda: 0, most_threads=16)
    with running(sys.executable, "-IS", "-c", threads + SAY_AND_WAIT) as pid:
        with pytest.raises(ProbeFailed):
            probe.observe(ProbeTarget(pids=(pid,)))
        with pytest.raises(ProbeFailed):
            probe.observe(ProbeTarget(pids=tuple(range(pid, pid + 17))))


def test_memory_that_several_share_is_counted_once(observed) -> None:
    with running(sys.executable, "-IS", "-c", SHARED + SAY_AND_WAIT) as pid:
        below = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(below) == 2
        # Each of the three shows all of it, and has a few MiB of its own.
        assert SIZE <= observed(pid, *below) < SIZE + 96 * MIB


def test_what_lies_in_a_sandboxs_own_folders_in_memory_is_counted(
    observed, require_real, tmp_path
) -> None:
    program = bubblewrap.find_bubblewrap()
    require_real("bubblewrap", program is not None)
    policy = SandboxPolicy.of_program("/bin/sh")
    script = "head -c 40000000 /dev/zero >/tmp/x; head -c 20000000 /dev/zero >/dev/shm/x; "
    command = ("/bin/sh", "-c", f"{script} echo there; read line")
    wrapped = bubblewrap.wrap(program, command, policy, folder="/")
    with running(*wrapped) as pid:
        below, waiting = [], [pid]
        while waiting:
            one = waiting.pop()
            below.append(one)
            children = Path(f"/proc/{one}/task/{one}/children").read_text()
            waiting += [int(child) for child in children.split()]
        assert observed(*below) > 60_000_000


def test_the_sandboxs_own_folders_in_memory_cannot_grow_further(require_real) -> None:
    program = bubblewrap.find_bubblewrap()
    require_real("bubblewrap", program is not None)
    policy = SandboxPolicy.of_program("/bin/sh")
    limit = bubblewrap.TEMPORARY_BYTES
    for place in ("/tmp", "/dev/shm"):
        command = ("/bin/sh", "-c", f"head -c {2 * limit} /dev/zero >{place}/x; wc -c <{place}/x")
        wrapped = bubblewrap.wrap(program, command, policy, folder="/")
        said = subprocess.run(wrapped, capture_output=True, text=True, check=False).stdout
        assert 0 < int(said) <= limit
    command = (
        "/bin/sh",
        "-c",
        "echo x >/dev/x || echo x >/x || echo x >/proc/sys/kernel/domainname",
    )
    wrapped = bubblewrap.wrap(program, command, policy, folder="/")
    assert subprocess.run(wrapped, capture_output=True, check=False).returncode != 0


def test_processor_time_of_workers_that_have_ended_is_counted() -> None:
    probe = ProcessProbe(read_vram=lambda: 0)
    with running(sys.executable, "-IS", "-c", WORKERS) as pid:
        target = ProbeTarget(pids=(pid,))
        probe.observe(target)
        before, started = _processor_time(pid), time.monotonic()
        time.sleep(1.5)
        observed = probe.observe(target).cpu_percent
        elapsed = time.monotonic() - started
        used = 100 * (_processor_time(pid) - before) / elapsed / (os.cpu_count() or 1)
        own = 100 * (_processor_time(pid, reaped=False)) / elapsed / (os.cpu_count() or 1)
    assert observed == pytest.approx(used, rel=0.25)
    assert observed > own


def _processor_time(pid: int, *, reaped: bool = True) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11 : 15 if reaped else 13])) / os.sysconf("SC_CLK_TCK")
