"""Discard what a plugin prints while the core calls it: it may be a secret (I-15).

`sys.stdout` and `sys.stderr` are replaced by proxies that ask, at each use, whether the present
context is muted. Only the calls of a plugin are; the product's other threads print as before.
A context reaches the tasks and `asyncio.to_thread` calls of the plugin too. It does not reach
threads that the plugin starts by itself, native code and child programs, which write to the
descriptors 1 and 2; `set_output_apart` gives those of a process that has a log to /dev/null.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, ParamSpec, TextIO, TypeVar, cast

__all__ = ["hear_muted_output", "mute_output", "muted", "set_output_apart"]

P = ParamSpec("P")
R = TypeVar("R")

_heard_by: Final[list[TextIO]] = []
_muted: Final[ContextVar[bool]] = ContextVar("companion_muted_output", default=False)


class _Stream:
    """Stands for a text stream, and for a null stream in a muted context."""

    def __init__(self, stream: TextIO, *, main_thread_only: bool = False) -> None:
        self._stream = stream
        self._main_thread_only = main_thread_only

    def _now(self) -> TextIO:
        muted = _muted.get() or (
            self._main_thread_only and threading.current_thread() is not threading.main_thread()
        )
        if muted:
            return _heard_by[-1] if _heard_by else _nowhere()
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __enter__(self) -> TextIO:
        return self._now().__enter__()

    def __exit__(self, *_: object) -> None:
        self._now().close()


@contextlib.contextmanager
def mute_output() -> Iterator[None]:
    """Discard what this thread prints, and what its tasks print, until the block ends."""
    _stand_before("stdout")
    _stand_before("stderr")
    before = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(before)


@contextlib.contextmanager
def hear_muted_output(stream: TextIO) -> Iterator[None]:
    """Write what is muted to `stream` in place of nowhere, until the block ends; for a check."""
    _heard_by.append(stream)
    try:
        yield
    finally:
        _heard_by.remove(stream)


def muted(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, muted whenever it is called."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with mute_output():
            return function(*args, **kwargs)

    return call


def set_output_apart() -> None:
    """Keep stderr as a log of the main thread alone; give descriptors 1 and 2 to /dev/null.

    For a process of the companion's own whose output is a log. It is called once, before any
    plugin is imported. A descriptor that is closed stays out of use as well.
    """
    null = os.open(os.devnull, os.O_RDWR)
    log: TextIO
    try:
        log = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError:
        log = _nowhere()
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    if null > 2:  # noqa: PLR2004 - stderr's number
        os.close(null)
    sys.stderr = cast("TextIO", _Stream(log, main_thread_only=True))


def _stand_before(name: str) -> None:
    """Put a proxy before `sys.stdout` or `sys.stderr`, unless there is one, or no stream."""
    stream = getattr(sys, name)
    if stream is not None and type(stream) is not _Stream:
        setattr(sys, name, _Stream(stream))


@cache
def _nowhere() -> TextIO:
    """Return a text stream that discards everything, with a descriptor of its own."""
    return io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", errors="replace")
