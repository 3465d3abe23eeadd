import asyncio
import contextlib
import json
import os
import socket
import stat
import sys
import threading
from dataclasses import replace

import pytest

from companion_core.cli.down_command import stop
from companion_core.config.paths import InstancePaths
from companion_core.control import client as control
from companion_core.control.client import InstanceLock, RunningInstance, ask, find_running, has_gone
from companion_core.control.server import ControlServer
from companion_core.egress.control_link import SocketLink
from companion_core.egress.live import LiveEgress
from companion_core.egress.process_identity import ProcessIdentity, ProcessUnreadable
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.system.state_files import write_private

pytestmark = pytest.mark.integration


@pytest.fixture
def paths(tmp_path):
    paths = InstancePaths(tmp_path / "state")
    paths.prepare()
    return paths


@contextlib.contextmanager
def held(paths):
    lock = InstanceLock(paths.lock_file)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def serve(paths, client):
    """Run the blocking `client(running)` against a control server in this process."""
    egress = LiveEgress()

    async def answer_status(_request):
        return {"available": True}

    async def answer_refused(_request):
        raise Refused(Reason.DIGEST_MISMATCH)

    async def run():
        server = ControlServer(paths, {"status": answer_status, "refused": answer_refused})
        await server.start(egress.identify(os.getpid()))
        try:
            return await asyncio.to_thread(client, find_running(paths, egress))
        finally:
            await server.close()

    with held(paths):
        return asyncio.run(run())


def test_a_question_is_answered_and_nothing_is_left(paths):
    answer = serve(paths, lambda running: ask(running, LiveEgress(), "status"))
    assert answer == {"available": True}
    assert not paths.state_file.exists()
    assert list(paths.run_folder().iterdir()) == []


def test_the_socket_and_the_state_file_are_the_owners_alone_and_hold_no_secret(paths):
    def look(running):
        assert stat.S_IMODE(running.control_socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(running.control_socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(paths.state_file.stat().st_mode) == 0o600
        return json.loads(paths.state_file.read_text())

    assert set(serve(paths, look)) == {"pid", "start_time", "control_socket"}


def test_a_refusal_comes_back_with_its_reason(paths):
    def ask_refused(running):
        with pytest.raises(Refused) as caught:
            ask(running, LiveEgress(), "refused")
        return caught.value.reason

    assert serve(paths, ask_refused) is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize(
    "line",
    [b"\n", b"not json\n", b"[]\n", b'{"op": "nonsense"}\n', b"x" * 70_000, b"[" * 60_000 + b"\n"],
)
def test_a_malformed_question_never_ends_the_server(paths, line):
    def send(running):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(running.control_socket))
            client.sendall(line)
            client.shutdown(socket.SHUT_WR)
            first = client.recv(65536)
        return first, ask(running, LiveEgress(), "status")

    first, status = serve(paths, send)
    assert first == b"" or json.loads(first)["ok"] is False
    assert status == {"available": True}


def test_closing_waits_for_no_silent_client_and_leaves_no_connection(paths):
    async def run():
        server = ControlServer(paths, {})
        await server.start(LiveEgress().identify(os.getpid()))
        path = str(paths.run_folder() / "control.sock")
        with socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
            early.connect(path)
            await asyncio.sleep(0.01)  # accepted by now; the other not yet
            late.connect(path)
            await server.close()
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for client in (early, late):
                client.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    assert client.recv(1) == b""
        return left

    assert asyncio.run(run()) == []


def test_another_uid_is_not_answered(paths, monkeypatch):
    # Another user cannot be had here: the system's answer is made up.
    monkeypatch.setattr("companion_core.control.server.peer_of", lambda _socket: (0, 12345))

    def ask_status(running):
        with pytest.raises(EnvironmentUnavailable) as caught:
            ask(running, LiveEgress(), "status")
        return caught.value.reason

    assert serve(paths, ask_status) is Reason.CONTROL_UNAVAILABLE


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
def test_nothing_is_sent_through_a_link_in_the_place_of_the_socket(paths):
    """The companion itself listens where the link leads, so its identity alone would pass."""
    path = paths.run_folder() / "control.sock"

    def ask_status(running):
        path.rename(path.with_name("aside.sock"))
        path.symlink_to("aside.sock")
        with pytest.raises(EnvironmentUnavailable) as caught:
            ask(running, LiveEgress(), "status")
        return caught.value.reason

    assert serve(paths, ask_status) is Reason.CONTROL_UNAVAILABLE


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
@pytest.mark.parametrize("told", [{"pid": 0}, {"pid": 1}, {"ended": True}], ids=str)
def test_nothing_is_sent_to_a_peer_that_the_system_does_not_name(paths, monkeypatch, told):
    seen = []
    pid = told.get("pid", os.getpid())
    # What the system answers about a foreign peer cannot be had here, so it is made up.
    monkeypatch.setattr("companion_core.egress.control_link.peer_of", lambda _: (pid, os.geteuid()))
    ended = told.get("ended", False)
    monkeypatch.setattr("companion_core.egress.control_link.listener_has_ended", lambda _: ended)
    monkeypatch.setattr(SocketLink, "ask", lambda *_: seen.append(1))

    def ask_status(running):
        with pytest.raises(EnvironmentUnavailable) as caught:
            ask(running, LiveEgress(), "status")
        return caught.value.reason

    assert serve(paths, ask_status) is Reason.CONTROL_UNAVAILABLE
    assert seen == []


def test_a_state_file_of_a_dead_or_other_process_is_not_believed(paths):
    egress = LiveEgress()
    me = egress.identify(os.getpid())
    for pid, start in ((2**22 - 1, 1), (me.pid, me.start_time + 1), ("1", 1), (None, None)):
        paths.state_file.write_text(
            json.dumps({"pid": pid, "start_time": start, "control_socket": "/x"})
        )
        paths.state_file.chmod(0o600)
        with held(paths):
            assert find_running(paths, egress) is None
    paths.state_file.write_text("garbage")
    assert find_running(paths, egress) is None


def test_a_state_file_whose_lock_is_free_is_not_believed(paths):
    egress = LiveEgress()
    me = egress.identify(os.getpid())
    state = {"pid": me.pid, "start_time": me.start_time, "control_socket": "/x"}
    write_private(paths.state_file, json.dumps(state).encode())
    assert find_running(paths, egress) is None
    with held(paths):
        assert find_running(paths, egress) is not None


def test_a_companion_that_releases_its_lock_meanwhile_has_gone(paths, monkeypatch):
    egress = LiveEgress()
    me = egress.identify(os.getpid())
    state = {"pid": me.pid, "start_time": me.start_time, "control_socket": "/x"}
    write_private(paths.state_file, json.dumps(state).encode())
    lock = InstanceLock(paths.lock_file)
    lock.acquire()
    running = find_running(paths, egress)
    assert not has_gone(running, paths, egress)
    # Long enough for the released lock to be noticed on a busy machine; no caller sets this time.
    monkeypatch.setattr(control, "KILLED_SECONDS", 60)
    killed = threading.Timer(0.1, lock.release)
    killed.start()
    assert has_gone(running, paths, egress)
    killed.join()


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell the peer's pid")
def test_a_socket_that_another_process_answers_is_not_believed(paths):
    def ask_other(running):
        other = replace(running, identity=replace(running.identity, pid=os.getppid()))
        with pytest.raises(EnvironmentUnavailable) as caught:
            ask(other, LiveEgress(), "status")
        return caught.value.reason

    assert serve(paths, ask_other) is Reason.CONTROL_UNAVAILABLE


def test_a_socket_that_no_process_serves_is_told_in_time(paths):
    egress = LiveEgress()
    running = RunningInstance(
        egress.identify(os.getpid()), paths.folder / "absent.sock", paths.lock_file
    )
    with pytest.raises(CompanionError) as caught:
        ask(running, egress, "status")
    assert caught.value.reason is Reason.CONTROL_UNAVAILABLE


def test_a_lock_that_cannot_be_had_is_the_disks_fault(paths):
    paths.lock_file.mkdir()
    with pytest.raises(EnvironmentUnavailable) as caught:
        InstanceLock(paths.lock_file).acquire()
    assert caught.value.reason is Reason.DISK_UNAVAILABLE


def test_the_lock_is_held_once(paths):
    first, second = InstanceLock(paths.lock_file), InstanceLock(paths.lock_file)
    first.acquire()
    with pytest.raises(EnvironmentUnavailable) as caught:
        second.acquire()
    assert caught.value.reason is Reason.ALREADY_RUNNING
    first.release()
    second.acquire()
    second.release()


class Blind(LiveEgress):
    """A system that hides processes (proc(5)), or whose numbers are another namespace's."""

    def __init__(self, shows) -> None:
        self.shows = shows
        self.signals = []

    def identify(self, pid):
        if isinstance(self.shows, Exception):
            raise self.shows
        return self.shows

    def send_signal(self, identity, number):
        self.signals.append((identity, number))
        return False


HIDDEN = {
    "hidden": None,
    "another's number": ProcessIdentity(os.getpid(), 1, "/bin/other"),
    "unreadable": ProcessUnreadable(),
}


@pytest.mark.parametrize("shows", HIDDEN.values(), ids=HIDDEN)
def test_a_companion_that_cannot_be_seen_is_found_and_stopped_by_its_socket(paths, shows):
    blind = Blind(shows)

    def client(_seen):
        running = find_running(paths, blind)
        assert running is not None
        assert not running.seen
        assert ask(running, blind, "status") == {"available": True}
        assert not control.wait_until_gone(running, blind, 0.1)
        with pytest.raises(CompanionError):
            stop(running, blind, now=True)  # this one knows no drain, and nothing is signalled
        return running

    running = serve(paths, client)
    assert blind.signals == []
    assert control.wait_until_gone(running, blind, 0.1)
    if isinstance(shows, Exception):
        return
    assert find_running(paths, blind) is None


def test_a_listener_of_another_user_or_process_proves_nothing(paths, monkeypatch):
    blind = Blind(None)

    def client(_seen):
        for peer, is_found in (
            ((os.getpid(), os.geteuid()), True),
            ((0, os.geteuid()), True),  # of another process namespace
            ((os.getpid(), os.geteuid() + 1), False),
            ((os.getpid() + 1, os.geteuid()), False),
            ((0, -1), False),
        ):
            monkeypatch.setattr(SocketLink, "peer", lambda _self, peer=peer: peer)
            assert (find_running(paths, blind) is not None) is is_found

    serve(paths, client)
