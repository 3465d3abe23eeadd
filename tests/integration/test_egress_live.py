"""The live doorway: processes that it proves before it signals them, and backends it reaches."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from companion_core.egress.interface import ProcessUnreadable
from companion_core.egress.live import LiveEgress
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import Reason
from companion_core.providers import TcpChannel, UnixChannel

pytestmark = pytest.mark.security

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper():
    egress = LiveEgress()
    child = egress.start_process(SLEEPER, env={})
    try:
        yield egress, child
    finally:
        child.kill()
        child.wait()


def test_a_proved_process_is_signalled(sleeper):
    egress, child = sleeper
    identity = egress.identify(child.pid)
    assert identity is not None
    assert Path(identity.executable).name.startswith("python")
    assert egress.send_signal(identity, signal.SIGTERM) is True
    assert child.wait(10) == -signal.SIGTERM
    assert egress.identify(child.pid) is None


def test_a_pid_with_another_start_time_is_never_signalled(sleeper):
    egress, child = sleeper
    identity = egress.identify(child.pid)
    other = ProcessIdentity(child.pid, identity.start_time + 1, identity.executable)
    assert egress.send_signal(other, signal.SIGKILL) is False
    assert child.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="threads as Linux has them")
def test_a_process_whose_first_thread_has_ended_is_proved_and_signalled():
    number = 60 if os.uname().machine == "x86_64" else 93  # exit(2) of this thread alone
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        f"ctypes.CDLL(None).syscall({number}, 0)\n"
    )
    egress = LiveEgress()
    with subprocess.Popen([sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE) as process:
        identity = egress.identify(process.pid)
        status = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + 30
        while b") Z " not in status.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert egress.identify(process.pid).start_time == identity.start_time
        assert egress.send_signal(identity, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert egress.identify(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO])
def test_a_process_that_cannot_be_read_is_not_taken_for_ended(sleeper, number, monkeypatch):
    egress, child = sleeper
    identity = egress.identify(child.pid)

    def fail(*_args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        for ask in (lambda: egress.identify(child.pid), lambda: egress.send_signal(identity, 9)):
            with pytest.raises(ProcessUnreadable) as caught:
                ask()
            assert caught.value.reason is Reason.PROCESS_UNREADABLE
    for name in ("pidfd_open", "pidfd_send_signal"):
        with monkeypatch.context() as patched:
            patched.setattr(os if hasattr(os, name) else signal, name, fail)
            with pytest.raises(ProcessUnreadable):
                egress.send_signal(identity, signal.SIGKILL)
    assert child.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pid_that_another_person_has_by_now_counts_as_ended(sleeper, monkeypatch):
    egress, child = sleeper

    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(ProcessUnreadable):
        egress.identify(child.pid)  # ours, and a signal would reach it
    monkeypatch.setattr(os, "kill", forbidden)
    assert egress.identify(child.pid) is None


def test_a_child_starts_in_its_own_session_with_exactly_its_environment():
    egress = LiveEgress()
    code = "import os; print(os.getsid(0) == os.getpid(), sorted(os.environ))"
    child = egress.start_process(
        [sys.executable, "-I", "-S", "-c", code], env={"A": "1"}, stdout=subprocess.PIPE
    )
    out, _ = child.communicate(timeout=20)
    names = out.decode()
    assert names.startswith("True")
    # The interpreter itself may add LC_CTYPE (PEP 538); nothing of ours is inherited.
    assert "PATH" not in names
    assert "'A'" in names


def test_a_backend_is_reached_where_it_listens_and_nowhere_else(tmp_path):
    path = str(tmp_path / "b.sock")
    with socket.socket(socket.AF_UNIX) as bound, socket.create_server(("127.0.0.1", 0)) as tcp:
        bound.bind(path)
        host, port = tcp.getsockname()
        unix, loopback = UnixChannel(path=path), TcpChannel(host=host, port=port)
        for channel, listener in ((unix, bound), (loopback, tcp)):
            if channel is unix:
                with pytest.raises(ConnectionRefusedError):
                    asyncio.run(LiveEgress().reach_backend(channel))
                bound.listen()
            asyncio.run(LiveEgress().reach_backend(channel))
            with listener.accept()[0] as client:
                assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(LiveEgress().reach_backend(loopback))


def test_a_busy_listener_is_waited_for_and_a_missing_one_is_refused():
    async def life():
        with socket.create_server(("127.0.0.1", 0), backlog=0) as behind, socket.socket() as first:
            channel = TcpChannel(host="127.0.0.1", port=behind.getsockname()[1])
            first.connect(behind.getsockname())
            # Its queue is full: the first packet is lost, and sent again a second later.
            connecting = asyncio.ensure_future(LiveEgress().reach_backend(channel))
            await asyncio.wait({connecting}, timeout=0.1)
            assert not connecting.done()
            behind.accept()[0].close()
            async with asyncio.timeout(30):
                await connecting
        with pytest.raises(ConnectionRefusedError):
            await LiveEgress().connect_backend(asyncio.Protocol, channel)

    asyncio.run(life())


@pytest.mark.skipif(sys.platform != "linux", reason="the signal masks are read in /proc")
def test_a_program_that_replaces_this_one_inherits_no_ignored_signal():
    code = (
        "from companion_core.egress.live import LiveEgress;"
        "LiveEgress().replace_process("
        "['grep', 'SigIgn', '/proc/self/status'], {'PATH': '/usr/bin:/bin'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ignored = int(done.stdout.split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not ignored >> (number - 1) & 1


@pytest.mark.skipif(sys.platform != "linux", reason="EAGAIN for a full backlog is Linux's")
def test_a_listener_with_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """Until then the socket is writable, but not connected."""
    path = str(tmp_path / "s")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(0)
            egress, channel = LiveEgress(), UnixChannel(path=path)
            await egress.connect_backend(asyncio.Protocol, channel)
            second = asyncio.ensure_future(egress.connect_backend(asyncio.Protocol, channel))
            await asyncio.sleep(0.05)
            assert not second.done()
            listener.accept()[0].close()
            async with asyncio.timeout(10):
                await second

    asyncio.run(main())
