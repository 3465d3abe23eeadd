"""Work that would hold the event loop up, done in slices: one piece of work after the other.

Between two slices the loop serves everybody else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

__all__ = ["Slices"]

T = TypeVar("T")


class Slices(Generic[T]):
    """Runs generators that yield between slices; of what waits nothing has begun."""

    __slots__ = ("_scheduled", "_work")

    def __init__(self) -> None:
        self._work: OrderedDict[object, tuple[Generator[None, None, T], Callable[[T], None]]] = (
            OrderedDict()
        )
        self._scheduled = False

    def start(
        self, owner: object, work: Generator[None, None, T], done: Callable[[T], None]
    ) -> None:
        """Do work for `owner`, which has no other, and call `done` with what it returns.

        It may be called once more after `cancel`.
        """
        self._work[owner] = work, done
        self._schedule()

    def cancel(self, owner: object) -> None:
        """Do no more for `owner`; harmless when there is nothing."""
        self._work.pop(owner, None)

    def _schedule(self) -> None:
        if self._work and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run_slice)

    def _run_slice(self) -> None:
        self._scheduled = False
        if not self._work:
            return
        owner, (work, done) = next(iter(self._work.items()))
        try:
            next(work)
        except StopIteration as ended:
            del self._work[owner]
            # In a turn of its own: to write and send a large body takes as long as many slices.
            asyncio.get_running_loop().call_soon(done, ended.value)
        except BaseException:
            del self._work[owner]
            raise
        finally:
            self._schedule()
