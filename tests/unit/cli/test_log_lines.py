"""A log that is read while it is written, emptied and replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.cli.log_lines import read_log

pytestmark = pytest.mark.unit


class _Enough(Exception):
    """The story is over."""


def followed(path: Path, *acts: Callable[[], object], count: int = 0) -> list[str]:
    """Return what is read while the acts are done, one at each look."""
    left = iter(acts)

    def sleep(_seconds: float) -> None:
        act = next(left, None)
        if act is None:
            raise _Enough
        act()

    lines: list[str] = []
    with contextlib.suppress(_Enough):
        lines.extend(read_log(path, count, following=True, sleep=sleep))
    assert next(left, None) is None
    return lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "companion.log"


def add(path: Path, text: str) -> Callable[[], object]:
    def act() -> None:
        with path.open("a") as file:
            file.write(text)

    return act


def rotate(path: Path) -> Callable[[], object]:
    return lambda: path.replace(path.with_name(path.name + ".1"))


def test_the_newest_lines_come_from_both_logs(path: Path) -> None:
    path.with_name("companion.log.1").write_text("one\ntwo\n")
    path.write_text("three\nfour\n")
    assert list(read_log(path, 0, following=False)) == ["one", "two", "three", "four"]
    assert list(read_log(path, 3, following=False)) == ["two", "three", "four"]


def test_without_a_log_there_are_no_lines(path: Path) -> None:
    assert list(read_log(path, 0, following=False)) == []


def test_a_line_comes_once_it_is_whole(path: Path) -> None:
    path.write_text("one\ntw")
    assert followed(path, add(path, "o\nthree"), add(path, "\n")) == ["one", "two", "three"]


def test_a_log_that_begins_later_is_followed(path: Path) -> None:
    assert followed(path, add(path, "one\n"), add(path, "two\n")) == ["one", "two"]


def test_a_full_log_is_read_to_its_end_and_the_next_one_from_its_beginning(path: Path) -> None:
    path.write_text("one\n")
    read = followed(path, add(path, "two\n"), lambda: (add(path, "last")(), rotate(path)()),
                    add(path, "new\n"))  # fmt: skip
    assert read == ["one", "two", "last", "new"]


def test_a_log_that_is_emptied_is_read_from_its_beginning(path: Path) -> None:
    path.write_text("a long first line\n")
    assert followed(path, lambda: os.truncate(path, 0), add(path, "new\n")) == [
        "a long first line",
        "new",
    ]


def test_only_the_newest_of_what_is_there_come_and_all_that_follow(path: Path) -> None:
    path.write_text("one\ntwo\nthree\n")
    assert followed(path, add(path, "four\nfive\n"), count=1) == ["three", "four", "five"]


def test_a_pipe_in_its_place_is_no_log(path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("a real part is missing: named pipes")
    os.mkfifo(path)
    with pytest.raises(OSError, match="no ordinary file"):
        list(read_log(path, 0, following=False))


def test_a_line_without_an_end_comes_in_parts(path: Path) -> None:
    path.write_bytes(b"x" * 200_000)
    assert sum(map(len, followed(path, lambda: None))) >= 131_072
