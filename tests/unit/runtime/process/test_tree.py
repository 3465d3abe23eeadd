from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runtime_parts import wait_until

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.process import tree as process_tree
from companion_core.runtime.process.tree import (
    descendants,
    environment_is_set,
    has_memory,
    lives,
    runtime_below,
)

pytestmark = pytest.mark.unit
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1

# A parent, a child started by another thread, its grandchild, and a zombie; ends with its input.
FAMILY = """
import os, subprocess, sys, threading
sleeper = [sys.executable, "-IS", "-c", "import sys; sys.stdin.read()"]
child = [sys.executable, "-IS", "-c", f"import subprocess; subprocess.run({sleeper!r})"]
threading.Thread(target=subprocess.run, args=(child,), daemon=True).start()
zombie = os.fork()
if zombie == 0:
    os._exit(0)
print(zombie, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        zombie = int(parent.stdout.readline())
        assert wait_until(lambda: not lives(zombie) and len(descendants(parent.pid)) == 2)
        yield parent, zombie
        below = descendants(parent.pid)
        parent.kill()
        for pid in below:
            psutil.Process(pid).kill()


@linux_only
@pytest.mark.parametrize("kernel_lists", [True, False])
def test_the_living_below_are_found_whoever_started_them(family, kernel_lists, monkeypatch) -> None:
    parent, zombie = family
    monkeypatch.setattr(process_tree, "_kernel_lists", lambda: kernel_lists)
    found = descendants(parent.pid)
    assert [psutil.Process(pid).ppid() for pid in found] == [parent.pid, found[0]]
    assert zombie not in found


MOVES = {
    "hidden behind a sibling that has just ended": [{1: [2]}, {1: [3]}],
    "its parent ended, listed": [{1: [2], 2: []}, {1: [3], 2: []}],
    "its parent ended, never listed": [{1: [2], 2: []}, {1: [2, 3], 2: []}],
    "twice": [{1: [2], 2: []}, {1: [2, 4], 4: []}, {1: [2, 4, 3]}],
}


class MovingLists:
    """Stands for the kernel's lists; what is read is as `now`, which moves on when compared."""

    def __init__(self, moves: list[dict[int, list[int]]]) -> None:
        self.moves, self.listed = moves, list[int]()

    def __call__(self) -> MovingLists:
        return self

    def children(self, pid: int) -> list[int]:
        self.listed.append(pid)
        return self.moves[0].get(pid, [])

    def are_as_read(self, pids: list[int]) -> bool:
        before = self.moves[0]
        self.moves = self.moves[1:] or self.moves
        return all(self.moves[0].get(pid) == before.get(pid) for pid in pids)


@linux_only
@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_nobody_who_moves_while_they_are_listed_is_left_out(moves, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "_lists", MovingLists(moves))
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert 3 in descendants(1)


@linux_only
def test_only_who_has_children_is_listed_again(monkeypatch) -> None:
    lists = MovingLists([{1: [2, 3], 2: [4]}, {1: [2, 3], 2: [4, 5]}])
    monkeypatch.setattr(process_tree, "_lists", lists)
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert descendants(1) == (2, 3, 4, 5)
    assert lists.listed == [1, 2, 3, 4, 1, 2, 5]


@linux_only
def test_nobody_is_listed_again_who_has_the_same_children(monkeypatch) -> None:
    lists = MovingLists([{1: [2, 3], 2: [4]}])
    monkeypatch.setattr(process_tree, "_lists", lists)
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert descendants(1) == (2, 3, 4)
    assert lists.listed == [1, 2, 3, 4]


@linux_only
@pytest.mark.parametrize("kernel_lists", [True, False])
def test_a_child_that_comes_or_goes_is_another_list(family, kernel_lists, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "_kernel_lists", lambda: kernel_lists)
    parent, _ = family
    below = [parent.pid, *descendants(parent.pid)]
    me = os.getpid()
    lists = process_tree._lists()
    assert below[1] in lists.children(parent.pid)
    assert parent.pid in lists.children(me)
    assert lists.are_as_read([parent.pid, me])
    with subprocess.Popen(["/bin/sleep", "60"]) as another:
        assert not lists.are_as_read([parent.pid, me])
        assert lists.are_as_read([parent.pid])
        another.kill()


@linux_only
def test_a_thread_that_begins_or_ends_is_another_list() -> None:
    lists, ending = process_tree._KernelLists(), threading.Event()
    me = os.getpid()
    lists.children(me)
    thread = threading.Thread(target=ending.wait)
    thread.start()
    assert not lists.are_as_read([me])  # it may have children, or be given some
    number = thread.native_id
    lists.children(me)
    assert lists.are_as_read([me])
    ending.set()
    thread.join()
    assert wait_until(lambda: not Path(f"/proc/{me}/task/{number}").exists())
    assert not lists.are_as_read([me])


@linux_only
def test_a_thread_that_ends_while_they_are_listed_leaves_its_children_to_another(
    monkeypatch,
) -> None:
    ended: list[str] = []

    def gone_once(path: str, real=process_tree.read_entry) -> bytes:
        if path.endswith("/children") and not ended:
            ended.append(path)
            raise FileNotFoundError
        return real(path)

    with subprocess.Popen(["/bin/sleep", "60"]) as below:
        monkeypatch.setattr(process_tree, "read_entry", gone_once)
        assert below.pid in process_tree._KernelLists().children(os.getpid())
        below.kill()
    assert ended


@linux_only
def test_without_its_root_the_session_tells(family) -> None:
    parent, _ = family
    found = descendants(parent.pid)
    parent.kill()
    parent.wait()
    assert set(descendants(parent.pid)) == set(found)


@linux_only
def test_a_process_whose_first_thread_has_ended_lives() -> None:
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=lambda: (print('up', flush=True), sys.stdin.read())).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2) of this thread alone
    )
    if os.uname().machine != "x86_64":
        code = code.replace("60", "93")
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert lives(process.pid)
        process.kill()


@linux_only
def test_an_empty_environment_is_told_from_none_yet() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={}) as process:
        assert wait_until(lambda: environment_is_set(process.pid))  # execve(2) may go on still
        process.kill()
    assert not environment_is_set(process.pid)


def test_a_process_that_is_gone_has_nobody_below() -> None:
    assert descendants(GONE) == ()
    assert process_tree._descendants_elsewhere(GONE) == ()


@linux_only
def test_without_proc_the_same_is_found_through_psutil(family) -> None:
    parent, zombie = family
    found = set(process_tree._descendants_elsewhere(parent.pid))
    assert found - {zombie} == set(descendants(parent.pid))


QUESTIONS = [lives, descendants, environment_is_set, lambda pid: runtime_below(pid, 1)]
ENDED = [errno.ENOENT, errno.ESRCH]
UNSAID = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM]


def failing(number: int, what: str = "", real=process_tree.read_entry):
    def read(path: str) -> bytes:
        if what in path:
            raise OSError(number, os.strerror(number))
        return real(path)

    return read


@linux_only
@pytest.mark.parametrize("number", ENDED)
def test_no_such_process_is_an_end(number, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "read_entry", failing(number))
    me = os.getpid()
    assert [ask(me) for ask in QUESTIONS] == [False, (), False, None]
    assert not has_memory(me)


@linux_only
@pytest.mark.parametrize("number", UNSAID)
def test_any_other_failed_look_is_none(number, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "read_entry", failing(number))
    me = os.getpid()
    for ask in QUESTIONS:
        with pytest.raises(ProcessUnreadable):
            ask(me)
    if number in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:  # nothing was seen
        with pytest.raises(ProcessUnreadable):
            has_memory(me)
    else:
        assert has_memory(me)


@linux_only
def test_an_entry_that_is_cut_off_is_none(monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "read_entry", lambda _path: b"1 (cut")
    with pytest.raises(ProcessUnreadable):
        lives(os.getpid())


@linux_only
@pytest.mark.parametrize("kernel_lists", [True, False])
@pytest.mark.parametrize("number", UNSAID)
def test_nobody_is_left_out_of_a_tree(family, number, kernel_lists, monkeypatch) -> None:
    parent, _ = family
    below = descendants(parent.pid)[-1]
    monkeypatch.setattr(process_tree, "_kernel_lists", lambda: kernel_lists)
    monkeypatch.setattr(process_tree, "read_entry", failing(number, f"/proc/{below}/stat"))
    with pytest.raises(ProcessUnreadable):
        descendants(parent.pid)


@linux_only
@pytest.mark.parametrize("number", UNSAID)
def test_children_that_cannot_be_listed_are_not_none(family, number, monkeypatch) -> None:
    parent, _ = family
    monkeypatch.setattr(process_tree, "read_entry", failing(number, "/children"))
    with pytest.raises(ProcessUnreadable):
        descendants(parent.pid)


@linux_only
def test_another_person_s_process_that_the_system_hides_is_left_out(family, monkeypatch) -> None:
    parent, _ = family
    found = descendants(parent.pid)
    parent.kill()
    parent.wait()
    monkeypatch.setattr(process_tree, "read_entry", failing(errno.EPERM, "/proc/1/"))
    with pytest.raises(ProcessUnreadable):  # it might be ours
        process_tree.descendants(parent.pid)
    real = process_tree.os.stat
    anothers = os.stat_result([0, 0, 0, 0, os.geteuid() + 1, 0, 0, 0, 0, 0])
    monkeypatch.setattr(
        process_tree.os, "stat", lambda path: anothers if path == "/proc/1" else real(path)
    )
    assert set(descendants(parent.pid)) == set(found)


@linux_only
def test_without_a_descriptor_left_nothing_is_said() -> None:
    code = (
        "import os, resource\n"
        "from companion_core.egress.live import LiveEgress\n"
        "from companion_core.egress.interface import ProcessUnreadable\n"
        "from companion_core.runtime.process.tree import descendants, lives\n"
        "me, egress = os.getpid(), LiveEgress()\n"
        "mine = egress.identify(me)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "asks = (lambda: lives(me), lambda: descendants(me), lambda: egress.identify(me))\n"
        "for ask in (*asks, lambda: egress.send_signal(mine, 0)):\n"
        "    try:\n"
        "        print('said', ask())\n"
        "    except ProcessUnreadable as error:\n"
        "        print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert told.stdout.splitlines() == ["process_unreadable"] * 4
