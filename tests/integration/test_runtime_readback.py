"""What is read back of real processes: their environment, and the sockets on which they listen."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from runtime_parts import descriptors, wait_until

from companion_core.decisions.runtime_readback import Listener
from companion_core.runtime.inspect import descriptor_tables, readback
from companion_core.runtime.inspect.readback import environment_names, listeners
from companion_core.runtime.inspect.socket_tables import listening_sockets
from companion_core.runtime.process import proc_files

pytestmark = pytest.mark.integration

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1


def test_listening_sockets_of_a_process_are_found_and_others_are_not() -> None:
    me = os.getpid()
    before = listeners([me])
    assert before is not None
    with (
        socket.socket() as listening,
        socket.socket() as bound,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket() as client,
    ):
        for each in (listening, bound, datagrams):
            each.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        seen = listeners([me])
        assert seen is not None
        assert seen - before == {
            Listener("tcp", *listening.getsockname()),
            Listener("udp", *datagrams.getsockname()),
        }
        # A datagram socket that talks to one peer alone is no listener.
        with socket.socket(type=socket.SOCK_DGRAM) as talking:
            talking.connect(datagrams.getsockname())
            assert listeners([me]) == seen


@linux_only
def test_a_listener_of_several_paths_is_one_of_tcp(require_real) -> None:
    me, before = os.getpid(), listeners([os.getpid()])
    multipath = None
    with contextlib.suppress(OSError):
        multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    require_real("multipath TCP", multipath is not None)
    with multipath:
        multipath.bind(("127.0.0.1", 0))
        multipath.listen()
        seen = listeners([me])
        assert seen is not None
        assert seen - (before or set()) == {Listener("tcp", *multipath.getsockname())}


# Two threads: one shares the process's descriptors, one leaves them and listens. Ends with its
# input.
ASIDE = """
import ctypes, socket, sys, threading, time
def listen():
    assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        time.sleep(3600)
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
threading.Thread(target=listen, daemon=True).start()
sys.stdin.read()
"""


@linux_only
@pytest.mark.parametrize("kernel_compares", [True, False])
def test_a_thread_with_descriptors_of_its_own_hides_no_listener(
    kernel_compares, monkeypatch
) -> None:
    if not kernel_compares:
        monkeypatch.setattr(descriptor_tables, "_comparison", lambda: lambda _one, _other: False)
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", ASIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        shown = descriptors(process.pid).values()
        assert not any(each.startswith("socket:") for each in shown)
        assert listeners([process.pid]) == {Listener("tcp", "127.0.0.1", port)}
        process.kill()


@linux_only
def test_a_socket_stays_where_it_was_made_when_its_process_moves_to_another_network(
    require_real,
) -> None:
    code = (
        "import ctypes, os, socket, sys\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "user = 0x10000000 if os.geteuid() else 0\n"
        "moved = ctypes.CDLL(None).unshare(0x40000000 | user) == 0\n"
        "print(listening.getsockname()[1] if moved else 0, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = listeners([process.pid])
        process.kill()
    require_real("network namespaces for everybody", port != 0)
    assert found == {Listener("tcp", "127.0.0.1", port)}


@linux_only
def test_what_takes_more_than_a_page_is_read_whole() -> None:
    names = {f"NAME_{number:03}": "x" * 100 for number in range(200)}
    with subprocess.Popen(["/bin/sleep", "60"], env=names) as process:
        assert wait_until(lambda: proc_files.environment_is_set(process.pid))
        assert environment_names(process.pid) == names.keys()
        process.kill()
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(64)]
        inodes = {os.fstat(each.fileno()).st_ino for each in sockets}
        found = set(listening_sockets(os.getpid(), ["tcp"], inodes))
        assert found == {Listener("tcp", *each.getsockname()) for each in sockets}


@linux_only
def test_an_empty_environment_has_no_names() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={}) as process:
        assert environment_names(process.pid) == frozenset()
        process.kill()


@linux_only
def test_without_proc_the_same_is_read_through_psutil() -> None:
    me = os.getpid()
    assert readback._environment_names_elsewhere(me) == environment_names(me)
    with socket.socket() as listening, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        datagrams.bind(("127.0.0.1", 0))
        assert readback._listeners_elsewhere([me]) == listeners([me])
    assert readback._listeners_elsewhere([GONE]) == frozenset()
    with pytest.raises(ProcessLookupError):
        readback._environment_names_elsewhere(GONE)
