"""The processes below another one, as a list that moves while it is read."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from runtime_parts import wait_until

from companion_core.runtime.process import tree as process_tree
from companion_core.runtime.process.tree import descendants

pytestmark = pytest.mark.unit

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE = 2**22 + 1

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
def test_a_process_that_gets_another_parent_while_listed_is_found(moves, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "_lists", MovingLists(moves))
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert 3 in descendants(1)


@linux_only
def test_only_processes_with_children_are_listed_again(monkeypatch) -> None:
    lists = MovingLists([{1: [2, 3], 2: [4]}, {1: [2, 3], 2: [4, 5]}])
    monkeypatch.setattr(process_tree, "_lists", lists)
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert descendants(1) == (2, 3, 4, 5)
    assert lists.listed == [1, 2, 3, 4, 1, 2, 5]


@linux_only
def test_a_process_with_the_same_children_is_not_listed_again(monkeypatch) -> None:
    lists = MovingLists([{1: [2, 3], 2: [4]}])
    monkeypatch.setattr(process_tree, "_lists", lists)
    monkeypatch.setattr(process_tree, "lives", lambda _pid: True)
    assert descendants(1) == (2, 3, 4)
    assert lists.listed == [1, 2, 3, 4]


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


def test_a_process_that_is_gone_has_nobody_below() -> None:
    assert descendants(GONE) == ()
    assert process_tree._descendants_elsewhere(GONE) == ()
