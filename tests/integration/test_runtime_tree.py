"""The processes below a real one, and what is said of them where a look fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from proc_double import UNSAID, failing, read_with
from runtime_parts import wait_until

from companion_core.egress.interface import ProcessUnreadable
from companion_core.runtime.process import tree as process_tree
from companion_core.runtime.process.proc_files import lives
from companion_core.runtime.process.tree import descendants

pytestmark = pytest.mark.integration

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

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
def test_living_descendants_are_found_whichever_thread_started_them(
    family, kernel_lists, monkeypatch
) -> None:
    parent, zombie = family
    monkeypatch.setattr(process_tree, "_kernel_lists", lambda: kernel_lists)
    found = descendants(parent.pid)
    assert [psutil.Process(pid).ppid() for pid in found] == [parent.pid, found[0]]
    assert zombie not in found


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
        read_with(monkeypatch, gone_once)
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
def test_without_proc_the_same_is_found_through_psutil(family) -> None:
    parent, zombie = family
    found = set(process_tree._descendants_elsewhere(parent.pid))
    assert found - {zombie} == set(descendants(parent.pid))


@linux_only
@pytest.mark.parametrize("kernel_lists", [True, False])
@pytest.mark.parametrize("number", UNSAID)
def test_an_unreadable_descendant_makes_the_tree_unreadable(
    family, number, kernel_lists, monkeypatch
) -> None:
    parent, _ = family
    below = descendants(parent.pid)[-1]
    monkeypatch.setattr(process_tree, "_kernel_lists", lambda: kernel_lists)
    read_with(monkeypatch, failing(number, f"/proc/{below}/stat"))
    with pytest.raises(ProcessUnreadable):
        descendants(parent.pid)


@linux_only
@pytest.mark.parametrize("number", UNSAID)
def test_children_that_cannot_be_listed_are_unreadable(family, number, monkeypatch) -> None:
    parent, _ = family
    read_with(monkeypatch, failing(number, "/children"))
    with pytest.raises(ProcessUnreadable):
        descendants(parent.pid)


@linux_only
def test_a_hidden_process_of_another_person_is_left_out(family, monkeypatch) -> None:
    parent, _ = family
    found = descendants(parent.pid)
    parent.kill()
    parent.wait()
    read_with(monkeypatch, failing(errno.EPERM, "/proc/1/"))
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
        "from companion_core.runtime.process.proc_files import lives\n"
        "from companion_core.runtime.process.tree import descendants\n"
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
